"""Ends a daemon at a named point, as SIGKILL would between two instructions.

A point is a seam (a function that the daemon passes through, such as ``engine.create``), a moment (before it, after it,
or during it) and how often it was passed until then. The seams are put round the daemon's own functions by `fit`, in
the process that is to end; nothing of this is in the daemon.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp.client_reqrep import ClientResponse

from enclaved.agent.link import GuestLink
from enclaved.core import boot, recovery
from enclaved.core.boot import Boot
from enclaved.core.ownership import Ownership
from enclaved.core.state import database
from enclaved.services import _interceptors

CRASHED = 86
"""The exit code of a daemon that met its point."""
ARMED = "armed"
PASSED = "passed"
ENGINE_CALLS = ("create", "starting", "status", "pause", "unpause", "update", "remove", "list_records")
Moment = Literal["before", "during", "after"]


@dataclass(frozen=True, slots=True)
class Point:
    """Where a daemon ends."""

    seam: str
    moment: Moment
    nth: int = 1
    """At the first passage since it was armed, or a later one."""

    def __str__(self) -> str:
        return f"{self.moment} {self.seam}" + (f" #{self.nth}" if self.nth > 1 else "")


class Fuse:
    """Watches the seams of one process. The folder is shared with the test, which arms a point there by a file."""

    def __init__(self, folder: Path) -> None:
        self._armed = folder / ARMED
        self._passed = os.open(folder / PASSED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seen: set[str] = set()
        self._hits: dict[str, int] = {}

    def passes(self, seam: str, moment: Moment) -> None:
        """The process is at this moment of a seam. Does not return if that is the armed point."""
        if self.is_armed(seam, moment):
            os._exit(CRASHED)

    def is_armed(self, seam: str, moment: Moment) -> bool:
        """Counts a passage; whether it is the armed point, which then is no longer armed."""
        if seam not in self._seen:
            self._seen.add(seam)
            os.write(self._passed, f"{seam}\n".encode())
        try:
            armed = self._armed.read_text()
        except FileNotFoundError:
            self._hits.clear()
            return False
        here = f"{moment} {seam}"
        wanted, _, nth = armed.partition(" #")
        if wanted != here:
            return False
        self._hits[here] = self._hits.get(here, 0) + 1
        if self._hits[here] < int(nth or 1):
            return False
        self._armed.unlink()
        return True


def arm(folder: Path, point: Point) -> None:
    """Has the daemon of a folder end at a point, now or when it comes there."""
    draft = folder / f"{ARMED}.new"
    draft.write_text(str(point))
    draft.replace(folder / ARMED)


def is_armed(folder: Path) -> bool:
    """Whether no daemon has met the point yet."""
    return (folder / ARMED).exists()


def passed(folder: Path) -> set[str]:
    """The seams that daemons of a folder came through."""
    return set((folder / PASSED).read_text().split("\n")) - {""}


# -- the seams


def fit(fuse: Fuse) -> None:
    """Puts the seams round the functions of the daemon in this process, but for those of its runtime."""
    _around(fuse, Boot, "take_uid", "uid.take")
    _around(fuse, Boot, "return_uid", "uid.return")
    _around(fuse, Boot, "new_directory", "directory.name")
    _around(fuse, boot, "write_accounts", "directory.fill")
    _around(fuse, boot, "install_guest", "guest.install")
    _around(fuse, Ownership, "of", "key.read")
    _around(fuse, Path, "replace", _file_of_state)
    _around(fuse, GuestLink, "listen", "socket.listen")
    _around(fuse, GuestLink, "close", "socket.close")
    _around(fuse, GuestLink, "send", lambda _, header, *__: f"frame.{header['type']}")
    _around(fuse, GuestLink, "on_frame", lambda _, __, header, *___: f"guest.{header['type']}")
    _around(fuse, recovery.Recovery, "load", "recovery.load")
    _around(fuse, _interceptors._Rpc, "answer", lambda rpc, *_: None if rpc.is_standard else f"rpc.{rpc.method}")
    _around_streams(fuse)
    _around_rmtree(fuse)
    _around_statements(fuse)


def fit_engine(fuse: Fuse, runtime: type) -> None:
    """Puts the seams ``engine.…`` round the calls of a class of runtimes."""
    for name in ENGINE_CALLS:
        if name != "starting":
            _around(fuse, runtime, name, f"engine.{name}")
    entering: Any = runtime.starting  # type: ignore[attr-defined]

    @functools.wraps(entering)
    def starting(*arguments: Any) -> Any:
        fuse.passes("engine.starting", "before")
        return _Entered(entering(*arguments), fuse)

    runtime.starting = starting  # type: ignore[attr-defined]


_PATHS = (
    ("POST", re.compile(r"/containers/create$"), "engine.create"),
    ("POST", re.compile(r"/containers/[0-9a-f]+/start$"), "engine.starting"),
    ("POST", re.compile(r"/containers/[0-9a-f]+/pause$"), "engine.pause"),
    ("POST", re.compile(r"/containers/[0-9a-f]+/unpause$"), "engine.unpause"),
    ("POST", re.compile(r"/containers/[0-9a-f]+/update$"), "engine.update"),
    ("DELETE", re.compile(r"/containers/[0-9a-f]+$"), "engine.remove"),
)


def fit_http_engine(fuse: Fuse) -> None:
    """Puts the moment ``during`` into calls of an engine over HTTP: the request is there, the answer is not read."""
    start: Any = ClientResponse.start

    @functools.wraps(start)
    async def started(response: Any, connection: aiohttp.connector.Connection) -> Any:
        for method, path, seam in _PATHS:
            if response.method == method and path.search(response.url.path) and fuse.is_armed(seam, "during"):
                writing = getattr(response, "_writer", None)
                if writing is not None:
                    await writing
                os._exit(CRASHED)
        return await start(response, connection)

    ClientResponse.start = started  # type: ignore[method-assign]


def _around(fuse: Fuse, owner: Any, name: str, seam: str | Callable[..., str | None]) -> None:
    """Replaces a function by one that passes the fuse before and after it. ``seam`` is its name, or finds it."""
    whole = inspect.getattr_static(owner, name)
    function = whole.__func__ if isinstance(whole, classmethod | staticmethod) else whole

    def named(arguments: tuple[Any, ...]) -> str | None:
        return seam if isinstance(seam, str) else seam(*arguments)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*arguments: Any, **options: Any) -> Any:
            found = named(arguments)
            if found is None:
                return await function(*arguments, **options)
            fuse.passes(found, "before")
            answer = await function(*arguments, **options)
            fuse.passes(found, "after")
            return answer
    else:

        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            found = named(arguments)
            if found is None:
                return function(*arguments, **options)
            fuse.passes(found, "before")
            answer = function(*arguments, **options)
            fuse.passes(found, "after")
            return answer

    setattr(owner, name, type(whole)(wrapped) if isinstance(whole, classmethod | staticmethod) else wrapped)


def _file_of_state(source: Path, *_: object) -> str | None:
    return f"file.{source.name.split('.')[1].split('-')[0]}" if source.name.startswith(".") else None


class _Entered:
    """A context manager that passes the fuse once it is entered."""

    def __init__(self, manager: Any, fuse: Fuse) -> None:
        self._manager, self._fuse = manager, fuse

    async def __aenter__(self) -> Any:
        entered = await self._manager.__aenter__()
        self._fuse.passes("engine.starting", "after")
        return entered

    async def __aexit__(self, *error: object) -> Any:
        return await self._manager.__aexit__(*error)


class _Context:
    """The context of a streaming RPC, whose answers pass the fuse."""

    def __init__(self, context: Any, fuse: Fuse) -> None:
        self._context, self._fuse = context, fuse

    async def write(self, message: Any) -> None:
        """Passes the fuse before and after an answer of a stream is handed to gRPC."""
        event = getattr(message, "event", message)
        kind = event.WhichOneof(event.DESCRIPTOR.oneofs[0].name) if event.DESCRIPTOR.oneofs else None
        seam = f"answer.{kind or event.DESCRIPTOR.name}"
        self._fuse.passes(seam, "before")
        await self._context.write(message)
        self._fuse.passes(seam, "after")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _around_streams(fuse: Fuse) -> None:
    answer = _interceptors._Rpc.answer

    @functools.wraps(answer)
    async def answered(rpc: Any, request: Any, context: Any) -> Any:
        streams = rpc.kind in ("server_stream", "bidi_stream") and not rpc.is_standard
        return await answer(rpc, request, _Context(context, fuse) if streams else context)

    _interceptors._Rpc.answer = answered  # type: ignore[method-assign]


def _around_rmtree(fuse: Fuse) -> None:
    """Passes the fuse round the removal of a sandbox's directory, and when half of it is gone."""
    rmtree: Any = shutil.rmtree

    def removed(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).parent.name != "s":
            rmtree(path, *arguments, **options)
            return
        fuse.passes("directory.remove", "before")
        rmtree(Path(path) / "accounts", ignore_errors=True)
        fuse.passes("directory.remove", "during")
        rmtree(path, *arguments, **options)
        fuse.passes("directory.remove", "after")

    shutil.rmtree = removed  # type: ignore[assignment]


_STATEMENT = re.compile(
    r"\s*(?:(INSERT)(?: OR \w+)? INTO (\w+)|(UPDATE) (\w+)|(DELETE) FROM (\w+)|(CREATE) TABLE (\w+)"
    r"|(ALTER) TABLE (\w+)|(BEGIN|COMMIT)()|PRAGMA (user_version|application_id) = ()|PRAGMA (journal_mode) = ())",
    re.IGNORECASE,
)


def statement(sql: str, values: object = ()) -> str | None:
    """The seam of a statement that writes: its verb and table, and of a sandbox that is written its state."""
    found = _STATEMENT.match(sql)
    if found is None:
        return None
    words = [word.lower() for word in found.groups() if word]
    state = values.get("state") if isinstance(values, dict) else None
    return ".".join(["sql", *words, *([str(state).upper()] if state else [])])


def _around_statements(fuse: Fuse) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
            seam = statement(sql, values)
            if seam is None:
                return super().execute(sql, values)
            fuse.passes(seam, "before")
            cursor = super().execute(sql, values)
            fuse.passes(seam, "after")
            return cursor

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=database.BUSY_S, isolation_level=None, factory=Connection)

    database._connect = connect
