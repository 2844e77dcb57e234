"""Reads a container's counters from its control group, of version 1 or 2: two small files.

The engine's stats API takes a second for the same numbers, and its `OOMKilled` stays false unless PID 1 died.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from enclaved.runtime.base import Counters

DEFAULT_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Group:
    """Where the files of one container are."""

    memory_events: str
    pids_events: str

    def read(self) -> Counters | None:
        memory, pids = _text(self.memory_events), _text(self.pids_events)
        if memory is None:
            return None
        return Counters(oom_kills=_field(memory, "oom_kill"), pids_limit_hits=_field(pids or "", "max"))


class ControlGroups:
    """The control groups of one engine's containers, under ``root``. Remembers where each was found."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self._root = root
        self._found: dict[str, _Group] = {}

    def counters(self, container_id: str) -> Counters | None:
        """The counters now; ``None`` if there is no such group, or not on this machine."""
        group = self._found.get(container_id) or self._find(container_id)
        if group is None:
            return None
        counters = group.read()
        if counters is None:
            self.forget(container_id)
        else:
            self._found[container_id] = group
        return counters

    def forget(self, container_id: str) -> None:
        """Forgets where a container's group is."""
        self._found.pop(container_id, None)

    def _find(self, container_id: str) -> _Group | None:
        names = (
            f"enclaved/{container_id}",  # driver cgroupfs
            f"enclaved.slice/docker-{container_id}.scope",  # driver systemd
        )
        for name in names:
            if (unified := self._root / name).is_dir():
                return _Group(str(unified / "memory.events"), str(unified / "pids.events"))
            memory, pids = self._root / "memory" / name, self._root / "pids" / name
            if memory.is_dir() and pids.is_dir():
                return _Group(str(memory / "memory.oom_control"), str(pids / "pids.events"))
        return None


def _field(text: str, name: str) -> int:
    """The number after ``name`` in lines of ``name number``; 0 if either is missing."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _text(path: str) -> str | None:
    """A small file, read with three system calls, since this is on the path of every call."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).decode("ascii", "replace")
    except OSError:  # the group went away in between
        return None
    finally:
        os.close(fd)
