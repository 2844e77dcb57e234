"""Reads the limits of a control group, of version 1 or 2, from the kernel's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from enclaved.runtime.docker.cgroup import is_group
from enclaved.runtime.inspection import GroupLimits

PARENTS: Final[Mapping[str, str]] = MappingProxyType({"cgroupfs": "enclaved", "systemd": "enclaved.slice"})
"""The group above all sandboxes, by the engine's driver."""
_NO_LIMIT: Final = 2**60
"""What is more is how the kernel writes "no limit" in version 1."""


def container_groups(container_id: str) -> tuple[str, ...]:
    """Where the group of a container may be."""
    return f"enclaved/{container_id}", f"enclaved.slice/docker-{container_id}.scope"


def read_limits(root: Path, names: tuple[str, ...]) -> GroupLimits | None:
    """The limits of the first of these groups that there is below ``root``; ``None`` if there is none."""
    for name in names:
        if is_group(root / name):
            return _unified(root / name)
        if is_group(root / "memory" / name) and is_group(root / "pids" / name):
            return _per_controller(root, name)
    return None


def _unified(group: Path) -> GroupLimits:
    swap = _text(group / "memory.swap.max")
    quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
    return GroupLimits(
        memory_bytes=_number(_text(group / "memory.max")),
        swap_bytes=_number(swap),
        pids=_number(_text(group / "pids.max")),
        cpus=_share(_number(quota), _number(period)),
        counts_swap=swap is not None,
    )


def _per_controller(root: Path, name: str) -> GroupLimits:
    memory = _number(_text(root / "memory" / name / "memory.limit_in_bytes"))
    both_text = _text(root / "memory" / name / "memory.memsw.limit_in_bytes")
    both = _number(both_text)
    return GroupLimits(
        memory_bytes=memory,
        swap_bytes=None if memory is None or both is None else max(0, both - memory),
        pids=_number(_text(root / "pids" / name / "pids.max")),
        cpus=_share(
            _number(_text(root / "cpu" / name / "cpu.cfs_quota_us")),
            _number(_text(root / "cpu" / name / "cpu.cfs_period_us")),
        ),
        counts_swap=both_text is not None,
    )


def _share(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota is not None and period else None


def _number(text: str | None) -> int | None:
    """A limit; ``None`` for what says that there is none."""
    value = int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else _NO_LIMIT
    return value if value < _NO_LIMIT else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return None


def write_ceiling(root: Path, memory_bytes: int, pids: int) -> None:
    """Makes the group above all sandboxes, where the engine makes groups itself, and gives it limits.

    An engine whose groups systemd makes uses a slice, whose unit has the limits. Raises `OSError`.
    """
    name = PARENTS["cgroupfs"]
    if (root / "cgroup.controllers").exists():
        (root / "cgroup.subtree_control").write_text("+memory +pids")
        group = _made(root / name)
        _write(group / "memory.max", memory_bytes)
        if (group / "memory.swap.max").exists():
            _write(group / "memory.swap.max", 0)
        _write(group / "pids.max", pids)
        return
    memory, processes = _made(root / "memory" / name), _made(root / "pids" / name)
    limits = [memory / "memory.limit_in_bytes", memory / "memory.memsw.limit_in_bytes"]
    wanted = [limit for limit in limits if limit.exists()]
    try:
        for limit in wanted:
            _write(limit, memory_bytes)
    except OSError:  # the second may not be below the first: the other way round for a limit that rises
        for limit in reversed(wanted):
            _write(limit, memory_bytes)
    _write(processes / "pids.max", pids)


def _made(group: Path) -> Path:
    """Makes a group that the daemon, which is another user, can look into, whatever the umask."""
    group.mkdir(exist_ok=True)
    group.chmod(0o755)
    return group


def _write(file: Path, value: int) -> None:
    file.write_text(f"{value}\n")
