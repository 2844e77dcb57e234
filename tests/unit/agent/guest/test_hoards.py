"""When programs hold too much of what the kernel bounds for no sandbox alone, with a loop that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from enclaved.agent.guest import hoards
from enclaved.agent.guest.hoards import Hoards


class Place:
    """A guest of which only this part is real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, owns_namespace: bool = True) -> None:
        self.terminals = self.sockets = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.stopped: list[tuple[Any, str]] = []
        self.killed = 0
        self.records = SimpleNamespace(active={"x": SimpleNamespace(state="running", cause=None, reason="")})
        self.contexts = SimpleNamespace(by_name={})
        monkeypatch.setattr(hoards, "terminals", lambda: self.terminals)
        monkeypatch.setattr(hoards, "netlink_sockets", lambda: self.sockets)
        made: Any = Hoards
        self.hoards = made(
            SimpleNamespace(after=self.after),
            self.records,
            self.contexts,
            SimpleNamespace(stop=lambda execution, cause: self.stopped.append((execution, cause))),
            SimpleNamespace(victims=self.victims, processes=SimpleNamespace(owns_namespace=owns_namespace)),
        )

    def after(self, delay_s: float, call: Callable[[], None]) -> object:
        self.timers.append((delay_s, call))
        return call

    def victims(self) -> set[int]:
        self.killed += 1
        return set()

    def look(self) -> None:
        _, call = self.timers.pop()
        call()


def test_who_has_too_much_twice_in_a_row_is_killed_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    place.hoards.begin()
    place.hoards.begin()
    assert len(place.timers) == 1
    place.sockets = 129
    place.look()
    assert (place.stopped, place.killed) == ([], 0)
    place.look()
    execution = place.records.active["x"]
    assert (place.stopped, place.killed) == ([(execution, "hoard")], 1)
    assert execution.reason == "its sandbox held 129 netlink sockets, of which it may have 128"


def test_too_much_for_a_moment_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    place.hoards.begin()
    for place.terminals in (257, 256, 257, 0):
        place.look()
    assert (place.stopped, place.killed) == ([], 0)


def test_an_end_that_has_a_cause_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    place.records.active["x"].cause = "timeout"
    place.terminals = 300
    place.hoards.begin()
    place.look()
    place.look()
    assert (place.stopped, place.killed) == ([], 1)


def test_it_looks_for_as_long_as_something_runs_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    place.hoards.begin()
    place.look()
    assert [delay_s for delay_s, _ in place.timers] == [0.5]
    place.records.active.clear()
    place.contexts.by_name["default"] = object()
    place.look()
    assert [delay_s for delay_s, _ in place.timers] == [2.0]
    place.contexts.by_name.clear()
    place.look()
    assert place.timers == []
    place.hoards.begin()
    assert [delay_s for delay_s, _ in place.timers] == [0.5]


def test_where_it_shares_what_is_counted_with_others_it_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, owns_namespace=False)
    place.hoards.begin()
    assert place.timers == []


def test_the_kernels_tables_are_read() -> None:
    assert hoards.terminals() >= 0
    assert hoards.netlink_sockets() >= 0
    assert hoards.hoard() == ""
