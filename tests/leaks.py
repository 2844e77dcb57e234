"""What tests and campaigns may leave on this machine, and how to find it: a look before, a look after, and what is new.

Others may use the machine at the same time. So containers, mounts, sockets and processes count only where they lie in
a folder that was made here, or descend from this process; control groups and network namespaces, which carry no name
of ours, only where nothing alive uses them.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.scripts.loading import load

LEAVING_S = 75.0
"""How long what was told to go may take. The engine takes control groups and namespaces down after its answer, and
namespaces of containers that had a network once a minute."""
LOOK_EVERY_S = 0.1
NAMESPACES = Path("/run/docker/netns")
CGROUPS = Path("/sys/fs/cgroup")
_CGROUP = re.compile(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?")
_CGROUP_PLACES = ("*/docker", "docker", "*/system.slice", "system.slice")
"""Of the engine's containers, by hierarchy (version 1) and without one (version 2), by both drivers."""

Found = dict[str, set[str]]


class LeftBehind(AssertionError):
    """Something stayed."""

    def __init__(self, left: Sequence[str]) -> None:
        super().__init__("left behind:\n" + "\n".join(left))
        self.left = left


@dataclass
class Scope:
    """What was made here, and is to be gone at the end."""

    folders: set[Path] = field(default_factory=set)
    """Each is to be gone, with what lies in it."""
    kept: set[Path] = field(default_factory=set)
    """Folders that stay, of which nothing is to be in use."""

    def owns(self, path: str | Path) -> bool:
        """Whether a path lies in a folder of ours."""
        return any(Path(path).is_relative_to(folder) for folder in (*self.folders, *self.kept))

    def look(self) -> Found:
        """Finds what there is now."""
        containers = _containers()
        return {
            "container": {name for name, mounts in containers.items() if any(map(self.owns, mounts))},
            "process": _processes(self),
            "mount": {point for point in _mount_points() if self.owns(point)},
            "socket": {path for path in _sockets() if self.owns(path)},
            "folder": {str(folder) for folder in self.folders if folder.exists()},
            "control group": _empty_cgroups(containers),
            "network namespace": _namespaces(),
        }

    def left(self, before: Mapping[str, set[str]], patience_s: float) -> list[str]:
        """Waits until nothing is there that was not there before; returns what does not go."""
        deadline = time.monotonic() + patience_s
        while True:
            now = self.look()
            left = [f"{kind} {name}" for kind in now for name in sorted(now[kind] - before.get(kind, set()))]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(LOOK_EVERY_S)


@contextmanager
def nothing_left(*kept: Path, patience_s: float = LEAVING_S) -> Iterator[Scope]:
    """Sees the temporary folders made in the block. Raises `LeftBehind` at its end if anything of it is still there.

    ``kept`` are folders that may stay, such as pytest's.
    """
    scope = Scope(kept={*kept})
    before = scope.look()
    make = tempfile.mkdtemp

    def remembered(*arguments: Any, **named: Any) -> str:
        folder: str = make(*arguments, **named)
        if not scope.owns(folder):
            scope.folders.add(Path(folder))
        return folder

    with mock.patch.object(tempfile, "mkdtemp", remembered):
        yield scope
    left = scope.left(before, patience_s)
    if left:
        raise LeftBehind(left)


# -- one process


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process are."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return sorted(found)


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own: without pages of files, which it shares with others."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0  # one that has ended and was not waited for has none


def children(pid: int) -> dict[int, str]:
    """The processes below one, with their commands."""
    parents: dict[int, list[int]] = {}
    for other in _pids():
        parents.setdefault(_parent(other), []).append(other)
    found = [*parents.get(pid, [])]
    for child in found:
        found += parents.get(child, [])
    return {child: command for child in found if (command := _command(child))}


# -- one state directory


def rows(database: Path) -> dict[str, int]:
    """How many rows each table of a daemon's database has."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: int(connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]) for table in tables}


# -- the machine


def _containers() -> dict[str, tuple[str, ...]]:
    """Every sandbox's container on the engine, with the paths that it mounts; none without an engine."""
    engine = load("_engine")
    try:
        found = engine.Engine.from_environment().containers("enclaved.id")
    except engine.EngineError:
        return {}
    return {container.id: container.mounts for container in found}


def _processes(scope: Scope) -> set[str]:
    """Processes that descend from this one or that were told of a folder of ours."""
    ours = {os.getpid(), *_ancestors()}
    below = children(os.getpid())
    folders = [*map(str, scope.folders | scope.kept)]
    named = {pid: command for pid in _pids() if any(folder in (command := _command(pid)) for folder in folders)}
    return {f"{pid} ({command[:200]})" for pid, command in {**below, **named}.items() if pid not in ours}


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid:
        yield pid
        pid = _parent(pid)


def _command(pid: int) -> str:
    """Its command line; empty if it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _sockets() -> list[str]:
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    return [fields[7] for line in lines if len(fields := line.split(maxsplit=7)) == 8]


def _empty_cgroups(containers: Mapping[str, object]) -> set[str]:
    """Control groups of containers that are gone, in which nothing runs."""
    found = set()
    for place in _CGROUP_PLACES:
        for folder in CGROUPS.glob(f"{place}/*"):
            name = _CGROUP.fullmatch(folder.name)
            if name and name[1] not in containers and not _is_populated(folder):
                found.add(str(folder))
    return found


def _is_populated(folder: Path) -> bool:
    try:
        return any(procs.read_text().strip() for procs in folder.rglob("cgroup.procs"))
    except OSError:
        return True  # it goes at this moment


def _namespaces() -> set[str]:
    """Network namespaces that the engine keeps, in which nothing runs."""
    try:
        kept = {entry.name: entry.stat().st_ino for entry in NAMESPACES.iterdir()}
    except OSError:
        return set()
    used = set()
    for pid in _pids():
        try:
            used.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
        except OSError:
            continue
    return {f"{NAMESPACES}/{name}" for name, inode in kept.items() if inode not in used}
