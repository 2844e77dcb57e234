"""Removes what daemons that are gone left: on the engine and on the disk, with a reason for each thing.

It is for operators, and works where no daemon does: it holds the lock of each state directory while it looks at it, and
passes over those whose lock somebody holds. A container goes only if it proves to have been made under the key of a
directory that is pruned.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import os
import socket
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from enclaved.core import strays
from enclaved.core.networks import owned_networks
from enclaved.core.ownership import (
    DOCTOR_PREFIX,
    EMBEDDED_NAME,
    KEY_NAME,
    LOCK_NAME,
    Ownership,
    is_of_gone_doctor,
    owner_of_embedded,
)
from enclaved.core.state import DATABASE_NAME
from enclaved.errors import EnclaveError, EngineRefused
from enclaved.runtime.base import LABEL_ID, LABEL_OWNER, ContainerRecord, NetworkRecord, Runtime

_NO_DAEMON: Final = "no daemon uses it, and no sandbox that is written down"
_ALL: Final = "everything of this state directory was asked for"
_CONNECT_S: Final = 1.0
DOCTOR_STATE: Final = Path("d", "s")
"""Where in its directory a doctor's own daemon keeps its state."""


class Sort(enum.StrEnum):
    """A sort of thing that can be left."""

    CONTAINER = "container"
    NETWORK = "network"
    DIRECTORY = "directory"
    FILE = "file"
    SOCKET = "socket"
    DATABASE = "database"
    STATE = "state directory"


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing, and why it goes, stays or did not go."""

    sort: Sort
    name: str
    reason: str
    size_bytes: int = 0
    """On the disk; 0 for containers, whose size only the engine knows."""


@dataclass
class Pruned:
    """What was found."""

    removed: list[Thing] = field(default_factory=list)
    """Of a dry run: what would be removed."""
    kept: list[Thing] = field(default_factory=list)
    """Not ours to remove."""
    failed: list[Thing] = field(default_factory=list)


class Prune:
    """One round. Raises `EngineUnavailable` before anything is changed if the engine does not answer."""

    def __init__(self, runtime: Runtime, *, dry_run: bool, everything: bool = False) -> None:
        """``everything``: also the sandboxes that the next daemon would take up."""
        self._runtime, self._dry_run, self._everything = runtime, dry_run, everything
        self._found = Pruned()
        self._containers: dict[str, ContainerRecord] = {}
        self._networks: list[NetworkRecord] = []

    async def run(
        self, state_dir: Path, bases: Sequence[Path], sockets: Sequence[Path], doctors: Path | None = None
    ) -> Pruned:
        """Looks at a state directory, at those of embedded daemons below bases, and at sockets of the first.

        Then at the directories of doctors in ``doctors``.
        """
        await self._list()
        with _locked(state_dir) as obstacle:
            if obstacle:
                self._keep_state(state_dir, obstacle)
            else:
                await self._prune(state_dir, everything=self._everything)
                for path in sockets:
                    await self._prune_socket(path)
        for base in dict.fromkeys(bases):
            for directory in sorted(_embedded(base)):
                await self._prune_embedded(directory)
        if doctors is not None:
            await self._prune_doctors(doctors)
        for container in self._containers.values():
            reason = "of another state directory, which may be in use; 'docker rm -f' it if you know that it is not"
            self._found.kept.append(Thing(Sort.CONTAINER, container.id, reason))
        return self._found

    async def run_doctors(self, base: Path) -> Pruned:
        """Looks only at what doctors left in a directory that were killed together with their daemons."""
        if _of_gone_doctors(base):
            await self._list()
            await self._prune_doctors(base)
        return self._found

    async def _list(self) -> None:
        self._containers = {container.id: container for container in await self._runtime.list_records()}
        self._networks = await self._runtime.list_networks()

    async def _prune(self, state_dir: Path, *, everything: bool) -> None:
        try:
            written = {} if everything else _written_down(state_dir / DATABASE_NAME)
        except sqlite3.Error as error:
            self._keep_state(state_dir, f"its database cannot be read ({error}); --all removes it with everything")
            return
        reason = _ALL if everything else _NO_DAEMON
        await self._prune_containers(state_dir, set(written), reason)
        places = [(Sort.DIRECTORY, place) for place in strays.directories(state_dir, set(written.values()))]
        files = [*strays.half_written(state_dir)]
        if not written:
            files += strays.earlier_guests(state_dir, None)
        for sort, place in [*places, *((Sort.FILE, place) for place in files)]:
            await self._remove(_thing(sort, place.path, reason), partial(strays.remove, place))
        database = state_dir / DATABASE_NAME
        if everything and database.exists():
            await self._remove(_thing(Sort.DATABASE, database, reason), lambda: _remove_database(database))

    async def _prune_embedded(self, directory: Path) -> None:
        state_dir = directory / "state"
        if (owner := owner_of_embedded(directory)) is not None:
            self._keep_state(state_dir, f"its program (process {owner}) runs and may start its daemon again")
            return
        await self._prune_whole(directory, state_dir, "its daemon and its program are gone")

    async def _prune_doctors(self, base: Path) -> None:
        for directory in _of_gone_doctors(base):
            await self._prune_whole(directory, directory / DOCTOR_STATE, "its doctor and that one's daemon are gone")

    async def _prune_whole(self, directory: Path, state_dir: Path, reason: str) -> None:
        with _locked(state_dir) as obstacle:
            if obstacle:
                self._keep_state(state_dir, obstacle)
                return
            before = len(self._found.failed)
            await self._prune_containers(state_dir, set(), reason)
            if len(self._found.failed) == before:  # without its key nobody could prove whose they are
                place = strays.Place(directory, directory.lstat().st_ino)
                await self._remove(_thing(Sort.STATE, directory, reason), lambda: strays.remove(place))

    async def _prune_containers(self, state_dir: Path, written: set[str], reason: str) -> None:
        ownership = _ownership(state_dir)
        if ownership is None:
            return
        for container in [c for c in self._containers.values() if c.labels.get(LABEL_OWNER) == ownership.owner]:
            del self._containers[container.id]
            thing = Thing(Sort.CONTAINER, container.id, reason)
            if not ownership.proves(container.labels):
                self._found.kept.append(replace(thing, reason="it imitates our labels, and proves nothing"))
            elif container.labels.get(LABEL_ID, "") in written:
                self._found.kept.append(replace(thing, reason="the next daemon takes its sandbox up"))
            else:
                await self._attempt(thing, partial(self._runtime.remove, container.id))
        for network in owned_networks(self._networks, ownership):
            thing = Thing(Sort.NETWORK, network.id, reason)
            if not written:
                await self._attempt(thing, partial(self._remove_network, network.id))
            else:
                self._found.kept.append(replace(thing, reason="the next daemon's sandboxes may need it"))

    async def _remove_network(self, network_id: str) -> None:
        if not await self._runtime.remove_network(network_id):
            raise EngineRefused("remove a network", "a container is in it")

    async def _prune_socket(self, path: Path) -> None:
        if _is_dead_socket(path):
            await self._remove(_thing(Sort.SOCKET, path, "nobody listens on it"), lambda: path.unlink(missing_ok=True))

    async def _remove(self, thing: Thing, remove: Callable[[], None]) -> None:
        await self._attempt(thing, partial(asyncio.to_thread, remove))

    async def _attempt(self, thing: Thing, removal: Callable[[], Awaitable[None]]) -> None:
        try:
            if not self._dry_run:
                await removal()
        except (EnclaveError, OSError) as error:
            self._found.failed.append(replace(thing, reason=str(error)))
        else:
            self._found.removed.append(thing)

    def _keep_state(self, state_dir: Path, reason: str) -> None:
        self._found.kept.append(Thing(Sort.STATE, str(state_dir), reason))
        ownership = _ownership(state_dir)
        if ownership is not None:
            self._containers = {
                name: container
                for name, container in self._containers.items()
                if container.labels.get(LABEL_OWNER) != ownership.owner
            }


@contextmanager
def _locked(state_dir: Path) -> Iterator[str]:
    """Holds the lock of a state directory, if it has one; gives what is in the way of pruning it, or nothing."""
    try:
        fd = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield ""
        return
    except OSError as error:
        yield f"its lock cannot be opened ({error.strerror}); prune it as the user to whom it belongs"
        return
    with os.fdopen(fd, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield f"a daemon (process {file.read(32).strip() or 'unknown'}) uses it, and looks for leftovers itself"
        else:
            yield ""


def _ownership(state_dir: Path) -> Ownership | None:
    try:
        return Ownership((state_dir / KEY_NAME).read_bytes())
    except OSError:
        return None  # nobody can prove anything


def _written_down(database: Path) -> dict[str, Path]:
    """The sandboxes of a database with their directories. Raises `sqlite3.Error`."""
    if not database.exists():
        return {}
    # A daemon that ended well left no log of writes. Then SQLite need not make one, and nothing is changed by reading.
    way = "mode=ro" if database.with_name(f"{database.name}-wal").exists() else "immutable=1"
    with closing(sqlite3.connect(f"file:{quote(str(database))}?{way}", uri=True)) as connection:
        return {str(name): Path(path) for name, path in connection.execute("SELECT id, directory FROM sandboxes")}


def _remove_database(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


def _embedded(base: Path) -> list[Path]:
    """Directories of embedded daemons of this user. What others could have made or changed is not looked at."""
    if not _is_private(base):
        return []
    return [entry for entry in base.iterdir() if EMBEDDED_NAME.fullmatch(entry.name) and _is_private(entry)]


def _of_gone_doctors(base: Path) -> list[Path]:
    """Directories of doctors of this user that are gone. Others may make such names in this base, too."""
    found = base.glob(f"{DOCTOR_PREFIX}*")
    return sorted(entry for entry in found if is_of_gone_doctor(entry) and _is_private(entry))


def _is_private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _is_dead_socket(path: Path) -> bool:
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_S)
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _thing(sort: Sort, path: Path, reason: str) -> Thing:
    return Thing(sort, str(path), reason, strays.size_bytes(path))
