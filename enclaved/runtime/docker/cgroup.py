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

WATCHED_MOST: Final = 64
"""Groups whose files stay open."""
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

    @property
    def event_files(self) -> tuple[str, str]:
        return f"{self.folder}/memory.events", f"{self.folder}/pids.events"

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

    @property
    def event_files(self) -> tuple[str, str]:
        return f"{self.memory}/memory.oom_control", f"{self.pids}/pids.events"

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


class _Watch:
    """The counters of one group. Their files stay open: to find them takes several times as long as to read them."""

    def __init__(self, group: _Unified | _PerController) -> None:
        self._group = group
        self._fds = [_opened(path) for path in group.event_files]
        self._seen: list[bytes | None] = []
        self._counted = Counters(0, 0)

    def counters(self) -> Counters | None:
        """The counters now; ``None`` if the group is gone."""
        found = [None if fd is None else _read(fd) for fd in self._fds]
        if found[0] is None:
            return None
        if found != self._seen:
            self._seen = found
            memory, pids = ((text or b"").decode("ascii", "replace") for text in found)
            events = _Events(_field(memory, "oom_kill"), _field(pids, "max"))
            if (self._counted.oom_kills, self._counted.pids_limit_hits) != events:
                self._counted = self._group.counters(events)
        return self._counted

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds:
            if fd is not None:
                os.close(fd)
        self._fds = []


class ControlGroups:
    """The control groups of one engine's containers, under ``root``. Remembers where each was found."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self._root = root
        self._found: dict[str, _Unified | _PerController] = {}
        self._watched: dict[str, _Watch] = {}

    def counters(self, container_id: str) -> Counters | None:
        """The counters now; ``None`` if there is no such group, or not on this machine.

        Peaks and limits are those of the last time that a counter moved, and 0 if none ever did: this is on the path
        of every call.
        """
        watch = self._watched.pop(container_id, None)
        if watch is None:
            group = self._group(container_id)
            if group is None:
                return None
            if len(self._watched) >= WATCHED_MOST:
                self._watched.pop(next(iter(self._watched))).close()
            watch = _Watch(group)
        self._watched[container_id] = watch  # last: the one used longest ago is first
        found = watch.counters()
        if found is None:
            self.forget(container_id)
        return found

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
        watch = self._watched.pop(container_id, None)
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Forgets all."""
        for container_id in [*self._found, *self._watched]:
            self.forget(container_id)

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
            if is_group(unified := self._root / name):
                return _Unified(str(unified))
            memory, pids = self._root / "memory" / name, self._root / "pids" / name
            if is_group(memory) and is_group(pids):
                cpu, io = self._root / "cpuacct" / name, self._root / "blkio" / name
                return _PerController(str(memory), str(pids), str(cpu), str(io))
        return None


def is_group(path: Path) -> bool:
    """Whether there is a control group that can be seen."""
    try:
        return path.is_dir()
    except OSError:  # the groups above it are closed to this user
        return False


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


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(fd: int) -> bytes | None:
    """A small file that is open; ``None`` once it was removed."""
    try:
        return os.pread(fd, _FILE_BYTES, 0) if os.fstat(fd).st_nlink else None
    except OSError:
        return None


def _text(path: str) -> str | None:
    """A small file."""
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
