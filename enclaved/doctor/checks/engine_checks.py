"""Checks of the container engine, from its own answers. Pure, but for the look at the room on its disk."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enclaved.config import Settings
from enclaved.doctor.checks.findings import Finding, failure, note, ok, warning
from enclaved.doctor.checks.holes import known, version_of

OLDEST_ENGINE: Final = (20, 10, 0)
ROOM_LEAST_BYTES: Final = 2 * 1024**3
SKEW_MOST_S: Final = 5.0
GIB: Final = 1024**3
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "PidsLimit": "processes",
    "CpuCfsQuota": "processor time",
}


def engine_findings(
    version: Mapping[str, Any], info: Mapping[str, Any], images: Sequence[str], settings: Settings
) -> Iterator[Finding]:
    """Judges what an engine says of itself."""
    yield from _versions(version, info)
    yield from _limits(info)
    yield from _separation(info)
    yield from _storage(info)
    yield _clock(info)
    yield from _runtimes(info, settings)
    yield _image(images, settings)
    if info.get("LiveRestoreEnabled") is True:
        yield ok("engine.live-restore", "sandboxes run on while the engine restarts")
    else:
        fix = 'set "live-restore": true in /etc/docker/daemon.json'
        yield note("engine.live-restore", "a restart of the engine ends every sandbox", fix)
    for text in info.get("Warnings") or ():
        yield warning("engine.warnings", f"the engine warns: {str(text)[:200]}", "see 'docker info'")


def _versions(version: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[Finding]:
    engine = str(version.get("Version") or info.get("ServerVersion") or "")
    parts = {"engine": engine}
    for component in version.get("Components") or ():
        name = str(component.get("Name", ""))
        details = component.get("Details") or {}
        if name in ("runc", "containerd"):
            # Distributions put their whole version where others put a commit.
            commit = str(details.get("GitCommit") or "")
            parts[name] = commit if version_of(commit) and "+" in commit else str(component.get("Version") or "")
    numbers = version_of(engine)
    if numbers is None:
        yield warning(
            "engine.version", f"the engine says no version that can be read ({engine!r})", "see 'docker version'"
        )
    elif numbers < OLDEST_ENGINE:
        yield failure("engine.version", f"engine {engine} is too old", "install 20.10 or later")
    else:
        said = ", ".join(f"{name} {text}" for name, text in parts.items())
        yield ok("engine.version", said)
    features = {"networks"} | ({"authorization"} if (info.get("Plugins") or {}).get("Authorization") else set())
    for part, text in parts.items():
        yield from _holes(part, text, features)


def _holes(part: str, text: str, features: set[str]) -> Iterator[Finding]:
    for hole in known(part, text, features):
        what = f"{part} {text} has {hole.name}: {hole.what}"
        fix = f"install {part} {' or '.join(hole.fixed)} or later, or a version of your distribution with the fix"
        yield (warning if hole.concerns_us else note)(f"hole.{hole.name}", what, fix)


def kernel_holes(release: str) -> Iterator[Finding]:
    """Judges the kernel's version."""
    yield from _holes("kernel", release, set())


def _limits(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info.get("CgroupVersion") or "1")
    driver = str(info.get("CgroupDriver") or "none")
    lacking = [words for key, words in _LIMITS.items() if info.get(key) is not True]
    if lacking or driver not in ("cgroupfs", "systemd"):
        why = f"limits are not enforced: {', '.join(lacking) or f'control group driver {driver}'}"
        fix = "enable the control groups memory, pids and cpu in the kernel; 'docker info' shows what is missing"
        yield failure("engine.limits", why, fix)
    else:
        yield ok("engine.limits", f"memory, processes and processor time are limited (cgroup v{version}, {driver})")
    if info.get("SwapLimit") is not True and version == "1":
        yield note("engine.swap-limit", "swap is not limited", "boot with swapaccount=1, or turn swap off")
    else:
        yield ok("engine.swap-limit", "swap is limited")


def _separation(info: Mapping[str, Any]) -> Iterator[Finding]:
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    profile = next((option for option in options if option.startswith("name=seccomp")), None)
    if profile is None:
        fix = "run a kernel with CONFIG_SECCOMP_FILTER and an engine with seccomp"
        yield failure("engine.seccomp", "the engine filters no system calls", fix)
    elif "unconfined" in profile:
        yield failure(
            "engine.seccomp",
            "the engine's filter lets everything through",
            "remove seccomp-profile from its configuration",
        )
    else:
        yield ok(
            "engine.seccomp", f"the engine filters system calls ({profile.partition(',')[2] or 'profile=default'})"
        )
    if any(option.startswith("name=apparmor") for option in options):
        yield ok("engine.apparmor", "AppArmor confines containers")
    else:
        yield note("engine.apparmor", "no AppArmor: the kernel or the engine does not have it")
    if any(option.startswith("name=userns") for option in options):
        yield ok("engine.user-namespaces", "root in a container is an ordinary user of the host")
    elif any(option.startswith("name=rootless") for option in options):
        yield ok("engine.user-namespaces", "the engine itself is an ordinary user of the host")
    else:
        fix = "give sandboxes an engine of their own with userns-remap"
        yield note("engine.user-namespaces", "root in a container is root's number on the host", fix)


def _storage(info: Mapping[str, Any]) -> Iterator[Finding]:
    driver = str(info.get("Driver") or "")
    if driver in ("overlay2", "overlayfs", "btrfs", "zfs", "fuse-overlayfs"):
        yield ok("engine.storage", f"storage driver {driver}")
    else:
        yield warning("engine.storage", f"storage driver {driver or 'unknown'} is slow or unsafe", "use overlay2")
    root = Path(str(info.get("DockerRootDir") or "/nowhere"))
    try:
        room = os.statvfs(root)
    except OSError:
        yield note("engine.room", f"the room in {root} cannot be seen from here")
        return
    free = room.f_bavail * room.f_frsize
    if free < ROOM_LEAST_BYTES or (room.f_files and room.f_favail < room.f_files // 50):
        yield warning(
            "engine.room",
            f"{free / GIB:.1f} GiB and {room.f_favail} files are free in {root}",
            "make room, or remove images",
        )
    else:
        yield ok("engine.room", f"{free / GIB:.1f} GiB are free in {root}")


def _clock(info: Mapping[str, Any], now: datetime | None = None) -> Finding:
    text = re.sub(r"(\.\d{1,6})\d*", r"\1", str(info.get("SystemTime") or ""))
    try:
        theirs = datetime.fromisoformat(text)
    except ValueError:
        return note("engine.clock", "the engine does not say what time it is")
    skew = abs(((now or datetime.now(UTC)) - theirs).total_seconds()) if theirs.tzinfo else 0.0
    if skew > SKEW_MOST_S:
        return warning(
            "engine.clock", f"the engine's clock is {skew:.0f} s away from this machine's", "run NTP on both"
        )
    return ok("engine.clock", "the engine's clock is this machine's")


def _runtimes(info: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    there = sorted(info.get("Runtimes") or {})
    wanted = {each.engine_runtime or each.name for each in settings.runtime_classes}
    missing = sorted(wanted - set(there))
    if missing:
        fix = "add them under runtimes in the engine's configuration, or remove the classes"
        yield failure("engine.runtimes", f"the engine lacks runtimes of configured classes: {', '.join(missing)}", fix)
    else:
        yield ok("engine.runtimes", f"runtimes: {', '.join(there) or 'none named'}")


def _image(images: Sequence[str], settings: Settings) -> Finding:
    name = settings.images.default
    tagged = name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
    alias = settings.images.aliases.get(name, "")
    if tagged in images or alias in images:
        return ok("engine.image", f"the default image {name} is there{f' as {alias}' if tagged not in images else ''}")
    if settings.engine.pull:
        return note("engine.image", f"the default image {name} will be pulled at its first use")
    return failure("engine.image", f"the default image {name} is not there, and pulling is off", f"docker pull {name}")


def socket_findings(path: Path | None, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Judges who may use the engine: who may, is root on its host."""
    if path is None:
        if not environ.get("DOCKER_TLS_VERIFY"):
            fix = "use a unix socket, or TLS with client certificates"
            yield warning("engine.socket", "the engine is reached over TCP without TLS", fix)
        else:
            yield ok("engine.socket", "the engine is reached over TLS")
        return
    try:
        found = path.stat()
    except OSError as error:
        yield failure("engine.socket", f"{path}: {error.strerror}", "start the engine, or name it with engine.url")
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o006:
        yield failure(
            "engine.socket", f"every user may use {path} ({mode:04o}), and is root with it", f"chmod o-rwx {path}"
        )
    else:
        yield ok("engine.socket", f"{path} is {mode:04o} {_group(found.st_gid)}")
    yield _members(found.st_gid)


def _members(gid: int) -> Finding:
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return ok("engine.group", f"the group {gid} of the engine's socket has no name and no members")
    users = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == gid)} - {"root", "enclaved"}
    if not users or gid == 0:
        return ok("engine.group", f"nobody but the daemon is in the group {group.gr_name}")
    fix = f"gpasswd -d NAME {group.gr_name}, for all but the daemon's user"
    return warning("engine.group", f"in {group.gr_name}, and so root on this host: {', '.join(sorted(users)[:8])}", fix)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
