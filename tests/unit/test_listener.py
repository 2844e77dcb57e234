"""A listening socket with a bound on its connections, in all and of one address."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from enclaved.gateway.listener import Bounded, holder


class Counts:
    """Counts as the daemon's metrics do."""

    def __init__(self) -> None:
        self.open = 0
        self.refused = 0

    def connection(self, change: int) -> None:
        self.open += change

    def connection_refused(self) -> None:
        self.refused += 1


class Arrivals:
    """Connections from wherever a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[socket.socket] = []
        self._next: Any = None
        monkeypatch.setattr(socket.socket, "accept", lambda _: (self._arrive(), self._next))

    def _arrive(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.kept.append(theirs)
        return ours

    def from_(self, listener: Bounded, address: Any) -> socket.socket | None:
        """The connection; ``None`` if it was closed at once."""
        self._next = address
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:
            assert self.kept[-1].recv(1) == b""
            return None
        self.kept.append(connection)
        return connection

    def close(self) -> None:
        """Closes what is open."""
        for one in self.kept:
            one.close()


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    with contextlib.closing(Arrivals(monkeypatch)) as arrivals:
        yield arrivals


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def listener(counts: Counts) -> Iterator[Bounded]:
    with Bounded(socket.socket(), 8, counts, share=4) as listener:
        yield listener


def test_one_address_gets_no_more_than_its_share_and_others_get_theirs(
    listener: Bounded, arrivals: Arrivals, counts: Counts
):
    held = [arrivals.from_(listener, ("192.0.2.7", port)) for port in range(5)]
    assert [bool(one) for one in held] == [True, True, False, False, False]
    assert arrivals.from_(listener, ("192.0.2.8", 1))
    assert (counts.open, counts.refused, listener.connections) == (3, 3, 3)


def test_a_connection_that_is_closed_makes_room_for_another_of_its_address(listener: Bounded, arrivals: Arrivals):
    first = arrivals.from_(listener, ("192.0.2.7", 1))
    assert first
    assert arrivals.from_(listener, ("192.0.2.7", 2))
    assert arrivals.from_(listener, ("192.0.2.7", 3)) is None
    first.close()
    first.close()
    assert arrivals.from_(listener, ("192.0.2.7", 4))
    assert arrivals.from_(listener, ("192.0.2.7", 5)) is None


@pytest.mark.parametrize("address", [("127.0.0.1", 1), ("127.8.0.1", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1), ""])
def test_this_machine_may_have_every_connection_and_no_more(listener: Bounded, arrivals: Arrivals, address: Any):
    assert [bool(arrivals.from_(listener, address)) for _ in range(9)] == [True] * 8 + [False]


def test_addresses_are_forgotten_with_their_last_connection(listener: Bounded, arrivals: Arrivals):
    for number in range(100):
        connection = arrivals.from_(listener, (f"192.0.2.{number}", 1))
        assert connection
        connection.close()
    assert (listener.connections, len(listener._of)) == (0, 0)


@pytest.mark.parametrize(
    ("address", "who"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::1", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
    ],
)
def test_networks_of_ipv6_and_mapped_addresses_count_as_one(address: Any, who: str):
    assert holder(address) == who
