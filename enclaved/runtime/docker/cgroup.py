"""Reads a container's counters and use of resources from its control group, of version 1 or 2: a few small files.

The engine's stats API takes a second for the same numbers, and its `OOMKilled` stays false unless PID 1 died. A file
that is missing or says something else than it should counts as 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from enclaved.model import ResourceUsage
from enclaved.runtime.base import Counters

DEFAULT_ROOT = Path("/sys/fs/cgroup")

_FILE_BYTES: Final = 16 * 1024
_NO_LIMIT: Final = 2**62
"""What is more is how the kernel writes "no limit" in version 1."""


class _Events(NamedTuple):
    """The counters that every look needs. The rest of `Counters` is only read when one of them has moved."""

    oom_kills: int = 0
    pids_limit_hits: int = 0


@dataclass(frozen=True, slots=True)
class _Unified:
    """A group of version 2: one directory."""

    folder: str

    def events(self) -> _Events | None:
        memory = _text(f"{self.folder}/memory.events")
        if memory is None:
            return None
        return _Events(_field(memory, "oom_kill"), _field(_text(f"{self.folder}/pids.events"), "max"))

    def counters(self, events: _Events) -> Counters:
        return Counters(
            *events,
            memory_peak_bytes=_number(f"{self.folder}/memory.peak"),
            memory_limit_bytes=_number(f"{self.folder}/memory.max"),
            pids_peak=_number(f"{self.folder}/pids.peak"),
            pids_limit=_number(f"{self.folder}/pids.max"),
        )

    def usage(self) -> ResourceUsage | None:
        memory = _text(f"{self.folder}/memory.current")
        if memory is None:
            return None
        cpu = _text(f"{self.folder}/cpu.stat")
        reclaimable_bytes = _field(_text(f"{self.folder}/memory.stat"), "inactive_file")
        io = _text(f"{self.folder}/io.stat")
        return ResourceUsage(
            cpu_user_s=_field(cpu, "user_usec") / 1e6,
            cpu_system_s=_field(cpu, "system_usec") / 1e6,
            memory_bytes=max(0, _integer(memory) - reclaimable_bytes),
            memory_peak_bytes=_number(f"{self.folder}/memory.peak"),
            pids=_number(f"{self.folder}/pids.current"),
            io_read_bytes=_sum(io, "rbytes="),
            io_write_bytes=_sum(io, "wbytes="),
        )


@dataclass(frozen=True, slots=True)
class _PerController:
    """A group of version 1: a directory below each controller's own tree."""

    memory: str
    pids: str
    cpu: str
    io: str

    def events(self) -> _Events | None:
        memory = _text(f"{self.memory}/memory.oom_control")
        if memory is None:
            return None
        return _Events(_field(memory, "oom_kill"), _field(_text(f"{self.pids}/pids.events"), "max"))

    def counters(self, events: _Events) -> Counters:
        return Counters(
            *events,
            memory_peak_bytes=_number(f"{self.memory}/memory.max_usage_in_bytes"),
            memory_limit_bytes=_number(f"{self.memory}/memory.limit_in_bytes"),
            pids_peak=_number(f"{self.pids}/pids.peak"),
            pids_limit=_number(f"{self.pids}/pids.max"),
        )

    def usage(self) -> ResourceUsage | None:
        memory = _text(f"{self.memory}/memory.usage_in_bytes")
        if memory is None:
            return None
        reclaimable_bytes = _field(_text(f"{self.memory}/memory.stat"), "total_inactive_file")
        user_s, system_s = self._cpu_s()
        io = _text(f"{self.io}/blkio.throttle.io_service_bytes")
        return ResourceUsage(
            cpu_user_s=user_s,
            cpu_system_s=system_s,
            memory_bytes=max(0, _integer(memory) - reclaimable_bytes),
            memory_peak_bytes=_number(f"{self.memory}/memory.max_usage_in_bytes"),
            pids=_number(f"{self.pids}/pids.current"),
            io_read_bytes=_sum(io, "Read "),
            io_write_bytes=_sum(io, "Write "),
        )

    def _cpu_s(self) -> tuple[float, float]:
        user = _text(f"{self.cpu}/cpuacct.usage_user")
        if user is not None:
            return _integer(user) / 1e9, _number(f"{self.cpu}/cpuacct.usage_sys") / 1e9
        ticks, second = _text(f"{self.cpu}/cpuacct.stat"), os.sysconf("SC_CLK_TCK")
        return _field(ticks, "user") / second, _field(ticks, "system") / second


class ControlGroups:
    """The control groups of one engine's containers, under ``root``. Remembers where each was found."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self._root = root
        self._found: dict[str, _Unified | _PerController] = {}
        self._counted: dict[str, Counters] = {}

    def counters(self, container_id: str) -> Counters | None:
        """The counters now; ``None`` if there is no such group, or not on this machine.

        Peaks and limits are those of the last time that a counter moved, and 0 if none ever did: this is on the path
        of every call.
        """
        group = self._group(container_id)
        events = None if group is None else group.events()
        if group is None or events is None:
            self.forget(container_id)
            return None
        known = self._counted.get(container_id, Counters(0, 0))
        if (known.oom_kills, known.pids_limit_hits) != events:
            known = self._counted[container_id] = group.counters(events)
        return known

    def usage(self, container_id: str) -> ResourceUsage | None:
        """What the whole container used up to now; ``None`` if there is no such group, or not on this machine."""
        group = self._group(container_id)
        usage = None if group is None else group.usage()
        if usage is None:
            self.forget(container_id)
        return usage

    def forget(self, container_id: str) -> None:
        """Forgets where a container's group is."""
        self._found.pop(container_id, None)
        self._counted.pop(container_id, None)

    def _group(self, container_id: str) -> _Unified | _PerController | None:
        group = self._found.get(container_id) or self._find(container_id)
        if group is not None:
            self._found[container_id] = group
        return group

    def _find(self, container_id: str) -> _Unified | _PerController | None:
        names = (
            f"enclaved/{container_id}",  # driver cgroupfs
            f"enclaved.slice/docker-{container_id}.scope",  # driver systemd
        )
        for name in names:
            if (unified := self._root / name).is_dir():
                return _Unified(str(unified))
            memory, pids = self._root / "memory" / name, self._root / "pids" / name
            if memory.is_dir() and pids.is_dir():
                cpu, io = self._root / "cpuacct" / name, self._root / "blkio" / name
                return _PerController(str(memory), str(pids), str(cpu), str(io))
        return None


def _field(text: str | None, name: str) -> int:
    """The number after ``name`` in lines of ``name number``; 0 if either is missing."""
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _integer(value)
    return 0


def _sum(text: str | None, mark: str) -> int:
    """The sum of the numbers that follow ``mark``, which stands once in the line of each device."""
    found: Iterable[tuple[str, str, str]] = (line.partition(f" {mark}") for line in (text or "").splitlines())
    return sum(_integer(rest.split(" ", 1)[0]) for _, _, rest in found)


def _number(path: str) -> int:
    """The number that is all of a file; 0 for a limit that is none."""
    return _integer(_text(path) or "")


def _integer(text: str) -> int:
    text = text.strip()
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    return value if value < _NO_LIMIT else 0


def _text(path: str) -> str | None:
    """A small file, read with three system calls, since this is on the path of every call."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _FILE_BYTES).decode("ascii", "replace")
    except OSError:  # the group went away in between
        return None
    finally:
        os.close(fd)
