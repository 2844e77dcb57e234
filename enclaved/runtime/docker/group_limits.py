"""Reads the limits of a control group, of version 1 or 2, from the kernel's files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from enclaved.runtime.inspection import GroupLimits

PARENTS: Final = ("enclaved", "enclaved.slice")
"""The group above all sandboxes, by the engine's driver: cgroupfs, systemd."""
_NO_LIMIT: Final = 2**60
"""What is more is how the kernel writes "no limit" in version 1."""


def container_groups(container_id: str) -> tuple[str, ...]:
    """Where the group of a container may be."""
    return f"enclaved/{container_id}", f"enclaved.slice/docker-{container_id}.scope"


def read_limits(root: Path, names: tuple[str, ...]) -> GroupLimits | None:
    """The limits of the first of these groups that there is below ``root``; ``None`` if there is none."""
    for name in names:
        if (root / name / "memory.max").exists():
            return _unified(root / name)
        if (root / "memory" / name).is_dir() and (root / "pids" / name).is_dir():
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
