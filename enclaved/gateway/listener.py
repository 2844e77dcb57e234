"""A listening socket that never has more than so many connections open, whatever is served on them.

It counts from the moment of the accept: connections that never finish a TLS handshake, or never ask for anything, count
like all others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

RESERVED_DESCRIPTORS: Final = 64
"""Files that a daemon has open without clients: its database, locks, the engine's connections, its event loop."""
LISTENERS: Final = 4
"""gRPC, HTTP and metrics have a share each of what is left, and so have the sandboxes."""
ADDRESS_SHARE: Final = 4
"""One address that is not a loopback one has at most one in so many of a listener's connections."""
_PREFIX_IPV6: Final = 64
"""Whoever has one IPv6 address usually has all of its network of this length."""


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

    So are those of one address beyond one in ``share`` of them, at least one; networks of IPv6 count as one address,
    and the loopback addresses and unix sockets are excepted. A connection that is open for ``life_s`` seconds is shut
    down (``None``: it may stay). Use it in one event loop.
    """

    def __init__(
        self,
        listener: socket.socket,
        most: int,
        counts: Counts | None = None,
        life_s: float | None = None,
        share: int = 1,
    ) -> None:
        super().__init__(fileno=listener.detach())
        self._most, self._counts, self._life_s = most, counts, life_s
        self._most_of_one = max(1, most // share)
        self._open = 0
        self._of: Counter[str] = Counter()
        """By address; only those that have one open, so there are never more than ``most``."""

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._open

    def accept(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Raises `ConnectionAbortedError` for one too many, which event loops pass over."""
        plain, address = super().accept()
        who = holder(address)
        if self._open >= self._most or (who and self._of[who] >= self._most_of_one):
            plain.close()
            if self._counts is not None:
                self._counts.connection_refused()
            raise ConnectionAbortedError
        self._count(who, 1)
        connection = _Connection(plain, partial(self._count, who, -1))
        if self._life_s is not None:
            connection.end_after(self._life_s)
        return connection, address

    def _count(self, who: str, change: int) -> None:
        self._open += change
        if who:
            self._of[who] += change
            if not self._of[who]:
                del self._of[who]
        if self._counts is not None:
            self._counts.connection(change)


def holder(address: Any) -> str:
    """Returns for whom a peer's address counts; empty for loopback addresses and for unix sockets."""
    if not isinstance(address, tuple):
        return ""
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            network = ipaddress.ip_network((found, _PREFIX_IPV6), strict=False)
            return "" if found.is_loopback else str(network)
        found = found.ipv4_mapped
    return "" if found.is_loopback else str(found)


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
