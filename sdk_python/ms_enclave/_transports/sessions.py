"""HTTP sessions to one server: one for each event loop, because a session belongs to the loop that made it.

Users call ``asyncio.run()`` several times and keep their objects. Each session is closed by its own loop when that
ends, so that no connection is left to the garbage collector; the next loop gets a new one.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from ms_enclave._forks import at_fork

KEEP_ALIVE_S: Final = 3.0
"""How long a connection is kept for the next call: less than servers keep theirs (uvicorn: 5 s), so that no call is
sent into a connection that is just being closed."""
CONNECT_S: Final = 10.0
"""How long it may take to connect."""


@dataclass(slots=True)
class _Entry:
    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    closer: AsyncGenerator[None, None]


class Sessions:
    """The sessions to one server. Safe to use from any loop and thread."""

    def __init__(
        self,
        *,
        unix: str | None = None,
        headers: Mapping[str, str] | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        """``unix``: the socket to connect to, whatever the URL says. ``headers`` go with every request.

        ``trusted``: how certificates are checked.
        """
        self._trusted = trusted
        self._unix = unix
        self._headers = dict(headers or {})
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._inherited: list[_Entry] = []
        """In a forked child: those of the parent, which are not ours to close."""
        _forget_in_children(self)

    async def session(self) -> aiohttp.ClientSession:
        """Returns the session of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            entry = self._entries.get(id(loop))
            if entry is not None and entry.loop is loop and not entry.session.closed:
                return entry.session
            for key in [key for key, old in self._entries.items() if old.loop.is_closed() or old.session.closed]:
                del self._entries[key]
            entry = self._entries[id(loop)] = self._open(loop)
        await anext(entry.closer)
        return entry.session

    async def close(self) -> None:
        """Closes the session of the running loop. A later call opens another."""
        with self._lock:
            entry = self._entries.pop(id(asyncio.get_running_loop()), None)
        if entry is not None:
            await entry.closer.aclose()

    def _open(self, loop: asyncio.AbstractEventLoop) -> _Entry:
        connector = (
            aiohttp.UnixConnector(self._unix, limit=0, keepalive_timeout=KEEP_ALIVE_S)
            if self._unix is not None
            else aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=True if self._trusted is None else self._trusted
            )
        )
        session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        session._retry_connection = False  # noqa: SLF001  (else a DELETE is repeated, and its second answer returned)
        return _Entry(loop, session, _closes(session))

    def forget(self) -> None:
        """In a forked child: lets go of what belongs to the parent."""
        self._lock = threading.Lock()
        self._inherited.extend(self._entries.values())
        self._entries = {}


async def _closes(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Closes a session when the loop that began to iterate this shuts its generators down, as it does at its end."""
    try:
        yield
    finally:
        await session.close()
        await asyncio.sleep(0)  # closed connections say goodbye in the loop's next round, which may be its last


def _forget_in_children(sessions: Sessions) -> None:
    found = weakref.ref(sessions)

    def forget() -> None:
        alive = found()
        if alive is not None:
            alive.forget()

    at_fork(after_in_child=forget)
