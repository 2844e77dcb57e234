"""Checks of the daemon's own files, listeners and ceiling, from its configuration."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enclaved.config import DEFAULT_FILE, Settings
from enclaved.daemon._tls import Unusable, read_pair
from enclaved.doctor.checks.findings import Finding, failure, note, ok, warning

ROOM_LEAST_BYTES: Final = 256 * 1024 * 1024
LARGE_MEMORY_BYTES: Final = 1 << 60
"""What control groups of version 1 say where there is no limit is beyond this."""
_LOOPBACK: Final = ("127.", "localhost", "[::1]", "unix:")
CERTIFICATE_SOON_S: Final = 21 * 86400.0
DEFAULT_POLICY: Final = "/etc/enclaved/policy.toml"
ACCOUNTS: Final = Path("/etc")
_CGROUPS = Path("/sys/fs/cgroup")


def daemon_findings(settings: Settings, file: Path | None, cgroups: Path = _CGROUPS) -> Iterator[Finding]:
    """Judges a configuration and what it names on this machine."""
    yield _config_file(file or DEFAULT_FILE)
    yield from _state(Path(settings.state.dir))
    yield from _socket(settings)
    yield from _listeners(settings)
    yield _policy(settings)
    yield _waived(settings)
    yield from _users(settings)
    yield _ceiling(cgroups)


def _config_file(path: Path) -> Finding:
    try:
        found = path.stat()
    except OSError:
        return note("config.file", f"no configuration in {path}; defaults hold")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        return failure("config.file", f"others may write to {path} ({mode:04o})", f"chmod go-w {path}")
    if found.st_uid not in (0, os.geteuid()):
        return warning("config.file", f"{path} belongs to the user {found.st_uid}", f"chown root {path}")
    if mode & 0o004 and _has_keys(path):
        return warning("config.file", f"every user may read the keys in {path} ({mode:04o})", f"chmod 0640 {path}")
    return ok("config.file", f"{path} is {mode:04o}")


def _has_keys(path: Path) -> bool:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any("api_keys" in line and '"' in line and "sha256:" not in line for line in lines)


def _state(path: Path) -> Iterator[Finding]:
    try:
        found = path.stat()
        room = os.statvfs(path)
    except FileNotFoundError:
        yield note("state.dir", f"{path} is not there yet; the daemon makes it")
        return
    except OSError as error:
        yield warning(
            "state.dir", f"{path} cannot be looked at: {error.strerror}", "run the doctor as the daemon's user or root"
        )
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield failure(
            "state.dir", f"others may look into {path} ({mode:04o}), where the daemon's key lies", f"chmod 0700 {path}"
        )
    else:
        yield ok("state.dir", f"{path} is {mode:04o}")
    open_files = [name for name, bits in _modes(path) if bits & 0o077]
    if open_files:
        fix = f"chmod go= {path}/{open_files[0]}"
        yield warning("state.files", f"others may read in {path}: {', '.join(open_files[:5])}", fix)
    free = room.f_bavail * room.f_frsize
    if free < ROOM_LEAST_BYTES:
        yield warning(
            "state.room", f"{free // 2**20} MiB are free in {path}", "make room: without it no sandbox is made"
        )
    else:
        yield ok("state.room", f"{free / 2**30:.1f} GiB are free in {path}")


def _modes(path: Path) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            yield entry.name, stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)


def _socket(settings: Settings) -> Iterator[Finding]:
    listen = settings.listen
    if not listen.unix:
        return
    path, wanted = Path(listen.unix), int(listen.unix_mode, 8)
    if wanted & 0o006:
        fix = 'set listen.unix_mode to "0660"'
        yield failure("listen.unix", f"every user of this machine may use the daemon ({listen.unix_mode})", fix)
    try:
        found = path.lstat()
    except OSError:
        yield note("listen.unix", f"{path} is not there: no daemon of this configuration runs")
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o006 and not wanted & 0o006:
        yield failure(
            "listen.unix", f"every user may connect to {path} ({mode:04o})", f"chmod {listen.unix_mode} {path}"
        )
    elif not wanted & 0o006:
        yield ok("listen.unix", f"{path} is {mode:04o}")
    parent = path.parent.stat()
    if parent.st_mode & 0o002 and not parent.st_mode & stat.S_ISVTX:
        fix = f"chmod o-w {path.parent}"
        yield failure("listen.directory", f"every user may replace the socket in {path.parent}", fix)


def _listeners(settings: Settings) -> Iterator[Finding]:
    """Judges the listeners of TCP. The daemon refuses to start where one is open to all; this says it before."""
    listen, tls = settings.listen, settings.tls
    for name, address in (("tcp", listen.tcp), ("http", listen.http), ("metrics", listen.metrics)):
        if not address:
            continue
        if address.startswith(_LOOPBACK):
            yield _loopback(name, address, settings)
        elif tls.cert:
            yield ok(f"listen.{name}", f"{address} with TLS")
        elif tls.behind_proxy:
            what = f"{address} without TLS of its own: tls.behind_proxy says that a proxy ends it"
            yield note(f"listen.{name}", what, "see that nobody reaches the port but the proxy")
        else:
            fix = f"set tls.cert and tls.key, or listen.{name} to loopback"
            yield failure(f"listen.{name}", f"{address} is open to others without TLS", fix)
    if tls.cert or tls.key:
        yield certificate_finding(Path(tls.cert), Path(tls.key))
    if settings.http.api_key_in_url:
        fix = "send keys as headers, and set http.api_key_in_url to false"
        yield warning("http.api_key_in_url", "keys may stand in URLs, which end up in logs", fix)


def _loopback(name: str, address: str, settings: Settings) -> Finding:
    listen = settings.listen
    keyed = (
        settings.http.api_keys or listen.http_auth == "required" if name == "http" else listen.tcp_auth == "required"
    )
    if name == "metrics" or keyed or address.startswith("unix:"):
        return ok(f"listen.{name}", address)
    fix = f'set listen.{name}_auth to "required", and make a token with enclaved token create'
    return note(f"listen.{name}", f"every user of this machine may run code over {address}", fix)


def certificate_finding(cert: Path, key: Path, now_s: float | None = None) -> Finding:
    """Judges the pair of files that the listeners use for TLS."""
    try:
        pair = read_pair(cert, key)
        mode = stat.S_IMODE(key.stat().st_mode)
    except (Unusable, OSError) as error:
        return failure("tls.cert", str(error), "set tls.cert and tls.key to files in PEM that the daemon can read")
    left_s = pair.not_after_s - (time.time() if now_s is None else now_s)
    if mode & 0o077:
        return failure("tls.cert", f"others may read the key {key} ({mode:04o})", f"chmod 0600 {key}")
    if left_s <= 0:
        return failure("tls.cert", f"{cert} has expired", "renew it; the daemon takes the new one up by itself")
    if left_s < CERTIFICATE_SOON_S:
        fix = "renew it; the daemon takes the new one up by itself"
        return warning("tls.cert", f"{cert} expires in {left_s / 86400:.0f} days", fix)
    return ok("tls.cert", f"{cert} is good for {left_s / 86400:.0f} days")


def _policy(settings: Settings) -> Finding:
    path = Path(settings.policy.file or DEFAULT_POLICY)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        if settings.policy.file:
            return failure("policy.file", f"{path}: {error.strerror}", "name a file of roles that the daemon can read")
        return ok("policy.file", "no file of roles; the compiled ones hold")
    if mode & 0o022:
        return failure("policy.file", f"others may write to {path} ({mode:04o})", f"chmod go-w {path}")
    return ok("policy.file", f"{path} is {mode:04o}; enclaved policy check says whether it is right")


def _waived(settings: Settings) -> Finding:
    waived = settings.waive.protections
    if not waived:
        return ok("waive.protections", "no protection is waived")
    fix = "mend what is waived, and take it out of waive.protections"
    return warning("waive.protections", f"the daemon does without {', '.join(waived)}", fix)


def _users(settings: Settings) -> Iterator[Finding]:
    first, count = settings.sandbox.uid_first, settings.sandbox.uid_count
    overlapping = []
    for name in ("subuid", "subgid"):
        try:
            lines = (ACCOUNTS / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            user, _, rest = line.partition(":")
            start, _, length = rest.partition(":")
            if start.isdigit() and length.isdigit() and int(start) < first + count and first < int(start) + int(length):
                overlapping.append(f"{user} (/etc/{name})")
    if overlapping:
        fix = "set sandbox.uid_first to a range of its own"
        who = ", ".join(sorted(set(overlapping))[:4])
        yield warning("sandbox.users", f"user ids of sandboxes are those that {who} may use", fix)
    else:
        yield ok("sandbox.users", f"user ids {first} to {first + count - 1} belong to nobody else")


def _ceiling(cgroups: Path) -> Finding:
    """Looks for a limit on the memory of all sandboxes together, in the parent of their control groups."""
    places = (
        cgroups / "memory" / "enclaved" / "memory.limit_in_bytes",
        cgroups / "memory" / "enclaved.slice" / "memory.limit_in_bytes",
        cgroups / "enclaved" / "memory.max",
        cgroups / "enclaved.slice" / "memory.max",
    )
    for place in places:
        try:
            text = place.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < LARGE_MEMORY_BYTES:
            return ok(
                "sandbox.ceiling", f"all sandboxes together have at most {int(text) / 2**30:.1f} GiB ({place.parent})"
            )
        break
    fix = "run enclaved prepare as root, before the daemon"
    return note(
        "sandbox.ceiling", "the memory of all sandboxes together is not limited; each has a limit of its own", fix
    )
