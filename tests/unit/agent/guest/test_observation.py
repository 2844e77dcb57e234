"""The guest's side of an observer that says and does whatever a test wants."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enclaved.agent.guest.limits import OBSERVER_PAUSE_MAX_S, OBSERVER_QUESTIONS
from enclaved.agent.guest.observation import Answer, Observer


class World:
    """A loop whose time is moved by hand, and children that only remember what they are sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[SimpleNamespace] = []
        self.wishes: list[tuple[Callable[[Any], None], Callable[[str], None]]] = []
        self.sent: list[dict[str, Any]] = []
        self.discarded: list[Any] = []
        self.answers: list[Answer | None] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.nursery = SimpleNamespace(request=self.request, withdraw=lambda owner: self.wishes.clear(), standby=[])
        self.observer = Observer(cast("Any", self), cast("Any", self), cast("Any", self.nursery))

    # what the observer calls

    def after(self, delay_s: float, call: Callable[[], None]) -> SimpleNamespace:
        timer = SimpleNamespace(at=self.now + delay_s, call=call)
        self.timers.append(timer)
        return timer

    def cancel(self, timer: SimpleNamespace | None) -> None:
        if timer in self.timers:
            self.timers.remove(timer)

    def request(self, owner: object, give: Callable[[Any], None], refuse: Callable[[str], None]) -> None:
        self.wishes.append((give, refuse))

    def give(self, child: Any, data: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if not fds:
            self.sent.append(json.loads(data[4:]))

    def discard(self, child: Any) -> None:
        self.discarded.append(child)

    # what a test does

    def ask(self) -> None:
        self.observer.ask([1, 2], ("pipe", 3), self.answers.append)

    def grant(self) -> Any:
        """Gives the observer the child that it asked for."""
        give, _ = self.wishes.pop()
        child = SimpleNamespace(pid=2**30, silent=False, keeper=None)
        give(child)
        return child

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now]:
            self.timers.remove(timer)
            timer.call()

    def say(self, **claim: Any) -> None:
        """Lets the observer answer the question that it was asked last."""
        sound = {"number": self.sent[-1]["number"], "read": 10, "written": 20, "waiting": True}
        self.observer.on_claim(cast("Any", self.observer.child), {**sound, **claim})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """See `World`."""
    return World(monkeypatch)


def test_questions_are_asked_one_after_the_other(world: World) -> None:
    for _ in range(3):
        world.ask()
    world.grant()
    for number in range(1, 4):
        assert [question["number"] for question in world.sent] == list(range(1, number + 1))
        world.say()
    assert [(answer.read_bytes, answer.written_bytes, answer.waiting) for answer in world.answers if answer] == [
        (10, 20, True)
    ] * 3
    assert world.sent[0]["pids"] == [1, 2]
    assert world.sent[0]["target"] == ["pipe", 3]


@pytest.mark.parametrize(
    "lie",
    [
        {"number": 7},
        {"number": True},
        {"number": "1"},
        {"read": -1},
        {"read": 2**63},
        {"written": 1.5},
        {"written": None},
        {"read": True},
        {"waiting": 1},
        {"waiting": None},
    ],
)
def test_an_observer_that_lies_is_dismissed_without_an_answer(world: World, lie: dict[str, Any]) -> None:
    world.ask()
    child = world.grant()
    world.say(**lie)
    assert (world.answers, world.discarded) == ([None], [child])


def test_an_answer_that_nobody_asked_for_ends_an_observer(world: World) -> None:
    world.ask()
    child = world.grant()
    world.say()
    world.say()
    assert world.discarded == [child]
    assert len(world.answers) == 1


def test_an_observer_that_is_late_is_dismissed_with_all_questions(world: World) -> None:
    for _ in range(5):
        world.ask()
    child = world.grant()
    world.wait(2.1)
    assert (world.answers, world.discarded) == ([None] * 5, [child])
    world.observer.on_claim(child, {"number": 1, "read": 1, "written": 1, "waiting": True})
    assert world.answers == [None] * 5


def test_failures_make_the_pause_longer_and_trust_ends_it(world: World) -> None:
    pauses = []
    for _ in range(12):
        started = world.now
        while True:
            world.ask()
            if world.wishes:
                break
            world.wait(0.05)
        pauses.append(world.now - started)
        world.observer.on_gone(world.grant())
    assert pauses[0] == 0
    assert pauses[1:] == sorted(pauses[1:])
    assert OBSERVER_PAUSE_MAX_S <= pauses[-1] <= OBSERVER_PAUSE_MAX_S + 0.1
    world.wait(OBSERVER_PAUSE_MAX_S)
    world.ask()
    child = world.grant()
    world.say()
    world.wait(20)
    world.observer.on_gone(child)
    world.wait(0.3)
    world.ask()
    assert world.wishes, "it was good for long, so the next one comes soon"


def test_no_child_in_time_is_no_answer(world: World) -> None:
    world.ask()
    _, refuse = world.wishes.pop()
    refuse("no process")
    assert world.answers == [None]


def test_very_many_questions_are_not_all_kept(world: World) -> None:
    for _ in range(OBSERVER_QUESTIONS + 10):
        world.ask()
    assert world.answers == [None] * 10


def test_an_observer_that_nobody_asks_ends_itself(world: World) -> None:
    world.ask()
    child = world.grant()
    world.say()
    world.wait(20)
    world.ask()
    world.say()
    world.wait(20)
    assert world.discarded == []
    world.wait(35)
    assert world.discarded == [child]
    world.ask()
    assert world.wishes, "and the next one comes at once"
