"""Which host directories a role may mount, and where. By names alone: links are looked at when a sandbox is made."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final

from enclaved.core.policy.docket import Docket
from enclaved.core.policy.roles import VolumeRule
from enclaved.core.spec_fields import directory_problem, has_surrogates, shown
from enclaved.errors import FieldViolation
from enclaved.model import Mount, SandboxRequest, Volume

VOLUMES_MAX: Final = 16
PATH_MAX: Final = 4096
NEVER: Final = (
    *("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/run"),
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/enclaved", "/var/lib/enclaved-engine"),
)
"""What no policy lets anybody mount, nor what lies in it or holds it: the system's, the engine's, the daemon's."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def malformed_volumes(request: SandboxRequest, working_dir: str) -> Iterator[FieldViolation]:
    """Finds what is wrong with wanted volumes, whatever the policy says of them."""
    if len(request.volumes) > VOLUMES_MAX:
        yield FieldViolation("spec.volumes", f"has {len(request.volumes)} entries; at most {VOLUMES_MAX} are possible")
        return
    targets: list[str] = []
    for index, volume in enumerate(request.volumes):
        field = f"spec.volumes[{index}]"
        if volume.mode not in ("ro", "rw"):
            yield FieldViolation(f"{field}.mode", f"is {shown(volume.mode)}; it must be 'ro' or 'rw'")
        problem = _source_problem(volume.host_path)
        if problem:
            yield FieldViolation(f"{field}.host_path", f"{shown(volume.host_path)} {problem}")
        target = volume.bind
        problem = directory_problem(target)
        if problem:
            yield FieldViolation(f"{field}.bind", problem)
        elif _is_within(working_dir, target):
            text = f"{shown(target)} would cover the working directory; mount it below that, or elsewhere"
            yield FieldViolation(f"{field}.bind", text)
        elif any(_is_within(target, other) or _is_within(other, target) for other in targets):
            yield FieldViolation(f"{field}.bind", f"{shown(target)} lies in, or over, another one of the volumes")
        targets.append(target)


def decide_mounts(docket: Docket, protected: tuple[str, ...]) -> tuple[Mount, ...]:
    """Decides on the volumes of a well-formed request."""
    return tuple(
        mount for volume in docket.request.volumes if (mount := _decide(docket, volume, protected)) is not None
    )


def is_protected(path: str, protected: tuple[str, ...], *, whole: bool = True) -> str:
    """Names what no policy lets anybody mount and a path lies in (``whole``: or holds), or nothing."""
    every = (*NEVER, *protected)
    return next((one for one in every if _is_within(path, one) or (whole and _is_within(one, path))), "")


def _decide(docket: Docket, volume: Volume, protected: tuple[str, ...]) -> Mount | None:
    asked = f"{volume.host_path} as {volume.bind} ({volume.mode})"
    rule, path = _find(docket.role.volumes, volume.host_path)
    reason, limit = "", ""
    if path is not None and (showing := is_protected(path, protected)):
        reason = f"{shown(path)} is, holds or lies in {showing}, which no policy lets anybody mount"
    elif rule is None or path is None:
        reason = f"this daemon does not mount {shown(volume.host_path)} for you"
        limit = ", ".join(_described(each) for each in docket.role.volumes[:8])
        reason += f", only {limit}" if limit else ", nor any other host directory"
    elif volume.mode != "ro" and not rule.writable:
        reason, limit = f"{shown(volume.host_path)} can be mounted read-only, with mode 'ro'", "ro"
    if rule is None or path is None or reason:
        text = f"{reason}; leave volumes out, or write files into the sandbox instead"
        docket.refuse("volumes", "volumes", "volumes", asked, text, limit)
        return None
    mount = Mount(path, volume.bind, volume.mode == "ro")
    docket.grant("volumes", "volumes", asked, f"{path} ({'ro' if mount.read_only else 'rw'})")
    return mount


def _find(rules: tuple[VolumeRule, ...], source: str) -> tuple[VolumeRule | None, str | None]:
    """Finds the rule that says most exactly what is wanted, and the host path that is meant."""
    if source.startswith("/"):
        path = normalised(source)
        fitting = [rule for rule in rules if not rule.name and _is_within(path, rule.path)]
        return max(fitting, key=lambda rule: len(rule.path), default=None), path
    name, _, rest = source.partition("/")
    for rule in rules:
        if rule.name == name:
            return rule, normalised(f"{rule.path}/{rest}")
    return None, None


def source_of(mount: Mount, rules: tuple[VolumeRule, ...]) -> str:
    """What somebody with these rules would have to say to get a mount: the name of a volume, or the path."""
    for rule in rules:
        if rule.name and _is_within(mount.host_path, rule.path) and (rule.writable or mount.read_only):
            return (rule.name + mount.host_path.removeprefix(rule.path.rstrip("/"))).rstrip("/")
    return mount.host_path


def normalised(path: str) -> str:
    """A path without empty parts and dots. Both slashes at its start count as one."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _described(rule: VolumeRule) -> str:
    return f"{shown(rule.name or rule.path)} ({'rw' if rule.writable else 'ro'})"


def _source_problem(source: str) -> str | None:
    if not source or len(source) > PATH_MAX or has_surrogates(source) or not source.isprintable():
        return f"is no path: at most {PATH_MAX} characters, all of them printable"
    if ".." in source.split("/"):
        return "has '..' in it; name the directory itself"
    if not source.startswith("/") and not _NAME.fullmatch(source.partition("/")[0]):
        return "is neither an absolute path nor the name of a volume that the operator registered"
    return None


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
