"""Known holes of engines, runtimes and kernels, with the versions that closed them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

Version = tuple[int, ...]

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+){1,3})")
_CANDIDATE = re.compile(r"-(?:rc|beta|alpha)[.-]?(\d+)?")


@dataclass(frozen=True, slots=True)
class Hole:
    """One known hole."""

    name: str
    part: str
    """``engine``, ``runc``, ``containerd`` or ``kernel``."""
    fixed: tuple[str, ...]
    """The first version without it in each line, oldest first; the last counts for later lines, too."""
    what: str
    concerns_us: bool = True
    """Whether code in a sandbox could use it against the profile; otherwise what stands behind that is weaker."""
    carried: tuple[str, ...] = ()
    """Versions of distributions that have the fix under an older number."""
    only_with: str = ""
    """``authorization``: only where plug-ins of the engine authorise; ``networks``: only with granted networks."""
    since: str = ""
    """The first version that has it; empty: all before."""


HOLES: Final = (
    Hole(
        "CVE-2024-21626",
        "runc",
        ("1.1.12",),
        "a descriptor of the host's file system is left open for containers",
        carried=("1.1.5+ds1-1+deb12u1",),
    ),
    Hole(
        "CVE-2025-31133",
        "runc",
        ("1.2.8", "1.3.3", "1.4.0"),
        "masked paths can be replaced while a container starts; needs an image or mounts of an attacker",
        concerns_us=False,
    ),
    Hole(
        "CVE-2025-52565",
        "runc",
        ("1.2.8", "1.3.3", "1.4.0"),
        "the mount of a terminal can be sent elsewhere while a container starts; needs an image of an attacker",
        concerns_us=False,
    ),
    Hole(
        "CVE-2025-52881",
        "runc",
        ("1.2.8", "1.3.3", "1.4.0"),
        "writes to /proc can be sent elsewhere while a container starts; needs mounts or an image of an attacker",
        concerns_us=False,
    ),
    Hole("CVE-2019-5736", "runc", ("1.0.0",), "the runtime's own program can be overwritten from a container"),
    Hole(
        "CVE-2024-41110",
        "engine",
        ("23.0.15", "25.0.6", "26.1.5", "27.1.1"),
        "requests without a body pass plug-ins that authorise",
        concerns_us=False,
        only_with="authorization",
    ),
    Hole(
        "CVE-2026-34040",
        "engine",
        ("29.3.1",),
        "requests with large bodies pass plug-ins that authorise",
        concerns_us=False,
        only_with="authorization",
    ),
    Hole(
        "CVE-2024-29018",
        "engine",
        ("23.0.11", "25.0.5", "26.0.0"),
        "names are looked up from the host also for internal networks; sandboxes with a network have fixed resolvers",
        concerns_us=False,
        only_with="networks",
    ),
    Hole(
        "CVE-2019-14271", "engine", ("19.3.1",), "copying out of a container runs code of it as root", concerns_us=False
    ),
    Hole(
        "CVE-2018-15664", "engine", ("18.9.7", "19.3.0"), "copying follows links planted meanwhile", concerns_us=False
    ),
    Hole("CVE-2021-41091", "engine", ("20.10.9",), "directories of containers can be read by every user of the host"),
    Hole(
        "io_uring",
        "engine",
        ("25.0.0",),
        "the engine's filter of system calls lets io_uring and vsock through; the daemon's own filter refuses both",
        concerns_us=False,
    ),
    Hole("CVE-2020-15257", "containerd", ("1.3.9", "1.4.3"), "its abstract socket can be reached from host networks"),
    Hole(
        "CVE-2022-0847",
        "kernel",
        ("5.10.102", "5.15.25", "5.16.11"),
        "read-only files can be written to through pipes",
        since="5.8",
    ),
    Hole("CVE-2016-5195", "kernel", ("4.4.26", "4.7.9", "4.8.3"), "read-only memory can be written to"),
)


def version_of(text: str) -> Version | None:
    """Reads the numbers of a version; a candidate counts as the version before. ``None`` if there are none."""
    found = _NUMBERS.match(text.strip())
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    numbers += [0] * (3 - len(numbers))
    if _CANDIDATE.match(text.strip()[found.end() :]):
        numbers = [*numbers[:-1], numbers[-1] - 1]
    return tuple(numbers)


def has(hole: Hole, text: str) -> bool:
    """Tells whether a version has a hole. A version that cannot be read has none: that is reported elsewhere."""
    version = version_of(text)
    if version is None or any(text.startswith(carried) for carried in hole.carried):
        return False
    if hole.since and version < (version_of(hole.since) or ()):
        return False
    fixes = [fix for fix in (version_of(one) for one in hole.fixed) if fix is not None]
    if version >= fixes[-1]:
        return False
    # A fix of an older line counts for that line only: 26.0.0 is later than 23.0.15, and has the hole.
    return not any(version[: len(fix) - 1] == fix[:-1] and version >= fix for fix in fixes)


def known(part: str, text: str, features: Collection[str]) -> list[Hole]:
    """Returns the holes of one part in a version that matter with these features."""
    return [
        hole
        for hole in HOLES
        if hole.part == part and has(hole, text) and (not hole.only_with or hole.only_with in features)
    ]
