"""One SQLite file: opened with care, written in microseconds, checkpointed in the background.

In WAL mode with ``synchronous=NORMAL`` a commit is one write to the page cache: a daemon that is killed loses nothing.
A machine that loses power may lose the last commits, and with them the containers that they told of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from enclaved.core.state.schema import APPLICATION_ID, MIGRATIONS
from enclaved.core.state.wal import missing_frames
from enclaved.errors import NoSpace

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S: Final = 5.0
CHECKPOINT_WRITES: Final = 1000
LOG_MOST_BYTES: Final = 16 * 1024 * 1024
SHRINK_FROM_BYTES: Final = 16 * 1024 * 1024
"""Room in the file that nobody uses, from which on it is made smaller at the start, if it is also half of the file."""
BUSY_S: Final = 1.0
"""How long to wait for another program that has the database open; the event loop waits with it."""
SANDBOXES: Final = "s"
"""The directory beside the database that has one of each sandbox."""
_MOVE_AWAY = "move the file away to start without it; its sandboxes are then removed"
_DISK_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
    }
)
"""What a full or failing disk makes of a write (primary codes)."""

T = TypeVar("T")


class StateUnusable(Exception):
    """The database cannot be used. The text says why and what to do, in one line."""


class Database:
    """A connection that belongs to the event loop's thread."""

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if need be, and brings it to the newest version. Raises `StateUnusable`."""
        self.path = path
        self._owed: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._writes = 0
        self._many = asyncio.Event()
        self._is_well: bool | None = None
        self.told: Callable[[bool], None] = lambda _: None
        """Hears whether writes work, at each change."""
        is_new = not path.exists()
        _check_whole(path)
        self._connection = _open(path)
        try:
            self._place = _place(path)
            self._prepare()
        except (sqlite3.Error, StateUnusable) as error:
            self._connection.close()
            if is_new:  # half a file takes room, and would be in the way of the next try
                _remove(path)
            if isinstance(error, StateUnusable):
                raise
            raise _refusal(path, error) from error

    def _prepare(self) -> None:
        application, version = self._number("PRAGMA application_id"), self._number("PRAGMA user_version")
        tables = self._number("SELECT count(*) FROM sqlite_master")
        if application != APPLICATION_ID and (application or version or tables):
            raise _unusable(self.path, "it is a database of another program", _MOVE_AWAY)
        newest = len(MIGRATIONS)
        if version > newest:
            known = f"a newer enclaved wrote it (version {version}, this one knows up to {newest})"
            raise _unusable(self.path, known, f"install that one again, or {_MOVE_AWAY}")
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _unusable(self.path, f"it is damaged ({found})", _MOVE_AWAY)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        if version < newest:
            with self._transaction():
                for statements in MIGRATIONS[version:]:
                    for statement in statements:
                        self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {newest}")
            log.info("state database made" if not version else "state database migrated", extra={"version": newest})
        self._shrink()

    def _shrink(self) -> None:
        """Gives the disk back what rows that went have left in the file. Where that fails, the room is used again."""
        pages, free = self._number("PRAGMA page_count"), self._number("PRAGMA freelist_count")
        free_bytes = free * self._number("PRAGMA page_size")
        if free_bytes < SHRINK_FROM_BYTES or free < pages / 2:
            return
        try:
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            log.warning("state database not made smaller", extra={"reason": str(error), "path": str(self.path)})
        else:
            log.info("state database made smaller", extra={"freed_bytes": free_bytes})

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    def load(
        self, query: str, make: Callable[[dict[str, Any]], T], values: Mapping[str, Any] = MappingProxyType({})
    ) -> list[T]:
        """Reads rows; ``make`` makes an object of each or raises `ValueError`. Raises `StateUnusable`."""
        try:
            found = self._connection.execute(query, dict(values))
            names = [column[0] for column in found.description]
            rows = [dict(zip(names, values, strict=True)) for values in found]
        except sqlite3.Error as error:
            raise _refusal(self.path, error) from error
        return self.make_sense(lambda: [make(row) for row in rows])

    def make_sense(self, make: Callable[[], T]) -> T:
        """Makes something of what was read. Raises `StateUnusable` where that raises `ValueError`."""
        try:
            return make()
        except ValueError as error:
            log.error("a row of the state database makes no sense", exc_info=error)
            raise _unusable(self.path, "it is damaged (a row makes no sense; see the log)", _MOVE_AWAY) from error

    def write(self, sql: str, values: Mapping[str, Any]) -> None:
        """Writes at once, after what is still owed. Raises `NoSpace` if the disk is full or fails."""
        self.write_all([(sql, values)])

    def write_all(self, writes: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Does what `write` does for several writes: all or none."""
        try:
            self._pay()
            with self._transaction() if len(writes) > 1 else nullcontext():
                for sql, values in writes:
                    self._execute(sql, values)
            self._tell()
        except sqlite3.Error as error:
            if _primary(error) not in _DISK_CODES:
                raise
            self._tell(error)
            hint = "make room there, or look at the disk"
            if isinstance(error, _Misplaced):
                hint = "restart the daemon, or put the directory back as it was"
            text = f"cannot write to the daemon's state directory {self.path.parent}: {error}; {hint}"
            raise NoSpace(str(self.path), text) from error

    def write_surely(self, key: str, sql: str, values: Mapping[str, Any]) -> None:
        """Writes what has happened already and cannot be refused: at once, else later, as soon as that works.

        Of several writes under one key only the last is owed.
        """
        try:
            self._pay()
            self._execute(sql, values)
            self._tell()
        except sqlite3.Error as error:
            self._tell(error)
            if not self._owed:
                log.error(
                    "state not written; will be tried again", extra={"reason": str(error), "path": str(self.path)}
                )
            self._owed.pop(key, None)
            self._owed[key] = (sql, values)

    def write_all_surely(self, writes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        """Does what `write_surely` does for many keys, in one transaction."""
        before = len(self._owed)
        for key, write in writes.items():
            self._owed.pop(key, None)
            self._owed[key] = write
        try:
            self._pay(late=before > 0)
            self._tell()
        except sqlite3.Error as error:
            self._tell(error)
            if not before:
                log.error(
                    "state not written; will be tried again", extra={"reason": str(error), "path": str(self.path)}
                )

    @property
    def owed(self) -> int:
        """How many writes wait for the disk."""
        return len(self._owed)

    @property
    def is_in_place(self) -> bool:
        """Whether the file that is open is the one that the next daemon finds."""
        return _place(self.path) == self._place

    def _tell(self, error: sqlite3.Error | None = None) -> None:
        if self._is_well is (error is None):
            return
        if error is not None:
            log.error("state cannot be written", extra={"reason": str(error), "path": str(self.path)})
        elif self._is_well is False:
            log.info("state can be written again", extra={"path": str(self.path)})
        self._is_well = error is None
        self.told(self._is_well)

    def _pay(self, *, late: bool = True) -> None:
        if not self.is_in_place:
            raise _Misplaced(f"{self.path.name} was removed or replaced while the daemon ran")
        if self._owed:
            with self._transaction():
                for sql, values in self._owed.values():
                    self._execute(sql, values)
            if late:
                log.info("state written after all", extra={"writes": len(self._owed)})
            self._owed.clear()

    def _execute(self, sql: str, values: Mapping[str, Any]) -> None:
        self._connection.execute(sql, values)
        self._writes += 1
        if self._writes >= CHECKPOINT_WRITES:
            self._many.set()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled it back already
                self._connection.execute("ROLLBACK")
            raise

    async def keep(self) -> None:
        """Moves what was written into the main file from time to time, and pays what is owed. Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECKPOINT_EVERY_S):
                    await self._many.wait()
            self._many.clear()
            try:
                self._pay()
                if self._writes:
                    self._writes = 0
                    await asyncio.to_thread(self._checkpoint)
                    # Pages that SQLite keeps would add up with each sandbox; the system has them in its own cache.
                    self._connection.execute("PRAGMA shrink_memory")
            except sqlite3.Error as error:  # the log of writes grows until this works; nothing is lost
                self._tell(error)
                log.warning("state not checkpointed", extra={"reason": str(error), "path": str(self.path)})
                await asyncio.sleep(CHECKPOINT_EVERY_S)

    def _checkpoint(self) -> None:
        """Runs in a thread, with a connection of its own, since it waits for the disk."""
        with closing(_connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if self.path.with_name(f"{self.path.name}-wal").stat().st_size > LOG_MOST_BYTES:
                # Writes that came meanwhile kept it from starting anew. This holds them up, for the few that are left.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Pays what is owed if that works, and closes the file."""
        try:
            self._pay()
        except sqlite3.Error as error:
            log.error("state not written", extra={"reason": str(error), "writes": len(self._owed)})
        self._connection.close()


class _Misplaced(sqlite3.OperationalError):
    """What is written would be found by nobody."""

    sqlite_errorcode = sqlite3.SQLITE_CANTOPEN


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_whole(path: Path) -> None:
    """Refuses a database of which something is missing that SQLite would not miss. Raises `StateUnusable`."""
    try:
        missing = missing_frames(path)
        is_empty = path.exists() and not path.stat().st_size
        sandboxes = path.with_name(SANDBOXES)
        if is_empty and sandboxes.is_dir() and any(sandboxes.iterdir()):
            raise _unusable(path, "it is empty, and there are sandboxes", f"put a copy of it back, or {_MOVE_AWAY}")
    except OSError as error:
        raise StateUnusable(
            f"cannot read the state directory {path.parent}: {error.strerror}; look at the disk"
        ) from error
    if missing:
        hint = (
            f"put a copy of it back, or remove {path.name}-shm to start without them; sandboxes of which only they "
            "told are then removed"
        )
        raise _unusable(path, f"its log of writes is damaged, the last {missing} are not in it", hint)


def _open(path: Path) -> sqlite3.Connection:
    """Opens the file; makes it, for this user alone, if there is none. SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return _connect(path)
    except OSError as error:
        hint = "make room there, or choose another one with state.dir (--state-dir)"
        why = f"cannot write to the state directory {path.parent}: {error.strerror} ({path.name}); {hint}"
        raise StateUnusable(why) from error
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)


def _primary(error: sqlite3.Error) -> int:
    """The primary result code; the extended ones add detail in higher bits."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _refusal(path: Path, error: sqlite3.Error) -> StateUnusable:
    if _primary(error) in _DISK_CODES:
        hint = "make room there, or choose another one with state.dir (--state-dir)"
        return StateUnusable(f"cannot write to the state directory {path.parent}: {error}; {hint}")
    return _unusable(path, f"it is damaged ({error})", _MOVE_AWAY)


def _unusable(path: Path, why: str, hint: str) -> StateUnusable:
    return StateUnusable(f"cannot use the state database {path}: {why}; {hint}")
