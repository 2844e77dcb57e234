"""A listening socket that never has more than so many connections open, whatever is served on them.

It counts from the moment of the accept: connections that never finish a TLS handshake, or never ask for anything, count
like all others.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

RESERVED_DESCRIPTORS: Final = 64
"""Files that a daemon has open without clients: its database, locks, the engine's connections, its event loop."""
LISTENERS: Final = 4
"""gRPC, HTTP and metrics have a share each of what is left, and so have the sandboxes."""


class Counts(Protocol):
    """Told of connections."""

    def connection(self, change: int) -> None:
        """Counts one that is opened (1) or closed (-1)."""
        ...

    def connection_refused(self) -> None:
        """Counts one that was closed at once, since there were too many."""
        ...


def connections_possible(wanted: int) -> int:
    """Returns how many connections a listener may have: ``wanted``, or fewer where this process may open few files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - RESERVED_DESCRIPTORS) // LISTENERS))


class Bounded(socket.socket):
    """Takes over a listening socket. Connections beyond ``most`` are closed as soon as they are there.

    A connection that is open for ``life_s`` seconds is shut down (``None``: it may stay). Use it in one event loop.
    """

    def __init__(
        self, listener: socket.socket, most: int, counts: Counts | None = None, life_s: float | None = None
    ) -> None:
        super().__init__(fileno=listener.detach())
        self._most, self._counts, self._life_s = most, counts, life_s
        self._open = 0

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._open

    def accept(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Raises `ConnectionAbortedError` for one too many, which event loops pass over."""
        plain, address = super().accept()
        if self._open >= self._most:
            plain.close()
            if self._counts is not None:
                self._counts.connection_refused()
            raise ConnectionAbortedError
        self._count(1)
        connection = _Connection(plain, lambda: self._count(-1))
        if self._life_s is not None:
            connection.end_after(self._life_s)
        return connection, address

    def _count(self, change: int) -> None:
        self._open += change
        if self._counts is not None:
            self._counts.connection(change)


class _Connection(socket.socket):
    """Says when it is closed."""

    def __init__(self, plain: socket.socket, closed: Callable[[], None]) -> None:
        super().__init__(fileno=plain.detach())
        self._closed_callback: Callable[[], None] | None = closed
        self._end: asyncio.TimerHandle | None = None

    def end_after(self, seconds: float) -> None:
        """Shuts it down then, if it is still open."""
        self._end = asyncio.get_running_loop().call_later(seconds, self._shut)

    def _shut(self) -> None:
        try:
            self.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end was faster
            return

    def close(self) -> None:
        super().close()
        if self._end is not None:
            self._end.cancel()
        if self._closed_callback is not None:
            closed, self._closed_callback = self._closed_callback, None
            closed()
