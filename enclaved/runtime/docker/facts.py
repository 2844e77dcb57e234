"""What must be known of an engine before a container is described to it. One that cannot hold limits is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from enclaved.errors import EngineRefused

CGROUP_DRIVERS = ("cgroupfs", "systemd")

_REQUIRED_LIMITS = {
    "MemoryLimit": ("memory_limit", "memory limits"),
    "PidsLimit": ("pids_limit", "limits on the number of processes"),
    "CpuCfsQuota": ("cpu_limit", "CPU limits"),
}
"""What an engine says it has, and the name of the protection that hangs on it."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the create body depends on."""

    cgroup_driver: str
    """``cgroupfs`` or ``systemd``: decides how a parent control group is named."""
    cgroup_version: int
    """1 or 2."""
    cpus: int
    """CPUs of the machine. An engine refuses a limit above it, although that means no more than "all of them"."""
    runtimes: frozenset[str] = frozenset()
    """What it can isolate containers with, by the names that its configuration gives."""


def lacking(info: Mapping[str, Any]) -> dict[str, str]:
    """What an engine says it does not enforce: names of protections, with words for them."""
    found = {name: words for key, (name, words) in _REQUIRED_LIMITS.items() if info.get(key) is not True}
    if not _filters_system_calls(info.get("SecurityOptions") or ()):
        found["engine_filter"] = "a seccomp filter"
    return found


def facts_of(info: Mapping[str, Any], waived: Collection[str] = ()) -> EngineFacts:
    """Reads the answer of ``GET /info``. ``waived`` are names of protections that the operator does without.

    Raises `EngineRefused` if the engine would take a limit or the system call filter and then not enforce it: engines
    answer such a create with success and a warning that nobody reads.
    """
    missing = [words for name, words in lacking(info).items() if name not in waived]
    driver = str(info.get("CgroupDriver", ""))
    if driver not in CGROUP_DRIVERS:
        missing.append(f"a control group driver (it has {driver!r})")
    if missing:
        raise EngineRefused(
            "isolate a sandbox",
            f"it does not enforce {', '.join(missing)}; 'docker info' shows why. "
            "Sandboxes run only where every limit is enforced",
        )
    return EngineFacts(
        cgroup_driver=driver,
        cgroup_version=cgroup_version(info),
        cpus=max(1, int(info.get("NCPU") or 1)),
        runtimes=frozenset(info.get("Runtimes") or ()),
    )


def cgroup_version(info: Mapping[str, Any]) -> int:
    """1 or 2. Engines before 20.10 do not say, and know version 1 only."""
    return 2 if str(info.get("CgroupVersion")) == "2" else 1


def _filters_system_calls(options: list[str] | tuple[str, ...]) -> bool:
    return any(o.startswith("name=seccomp") and "profile=unconfined" not in o for o in options)
