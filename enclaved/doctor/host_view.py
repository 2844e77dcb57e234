"""What the host's kernel tells of the processes of a container. Everything in it is under the control of user code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PROC: Final = Path("/proc")
_FIELDS: Final = frozenset(
    {
        *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
        *("NoNewPrivs", "Seccomp", "Seccomp_filters", "Name"),
    }
)


def can_see(container: dict[str, Any]) -> bool:
    """Tells whether the processes of this container are among those that this process can look at."""
    container_id, pid = container.get("Id"), (container.get("State") or {}).get("Pid")
    return bool(
        container_id and isinstance(pid, int) and pid > 0 and str(container_id) in _text(PROC / str(pid) / "cgroup")
    )


def named(container: dict[str, Any], name: str) -> list[int]:
    """Returns the host's process ids of those in a container whose name (``comm``) is this."""
    mark = str(container.get("Id"))
    return [
        pid
        for pid in _pids()
        if _text(PROC / str(pid) / "comm").rstrip("\n") == name and mark in _text(PROC / str(pid) / "cgroup")
    ]


def status(pid: int) -> dict[str, str]:
    """Reads what is known of a process: users, capabilities, filters; ``net``: the names of its interfaces."""
    found = {}
    for line in _text(PROC / str(pid) / "status").splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            found[name] = value.strip()
    devices = _text(PROC / str(pid) / "net" / "dev").splitlines()[2:]
    if devices:
        found["net"] = " ".join(line.partition(":")[0].strip() for line in devices)
    return found


def resident_bytes(pid: int) -> int | None:
    """Returns the memory of a process; ``None`` if it cannot be looked at."""
    for line in _text(PROC / str(pid) / "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def _pids() -> Iterator[int]:
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            yield int(entry.name)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""
