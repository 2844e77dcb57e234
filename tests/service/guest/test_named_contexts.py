"""Contexts by name: opened, listed, closed and reset by frames to a real guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.guest.conversation import Conversation, Header, conversation


@pytest.fixture
def wire() -> Iterator[Conversation]:
    """A guest of its own for each test."""
    with conversation() as made:
        yield made


def names(wire: Conversation) -> list[str]:
    return [context["name"] for context in wire.ask("list_contexts")["contexts"]]


def the_only(wire: Conversation) -> Header:
    (context,) = wire.ask("list_contexts")["contexts"]
    assert isinstance(context, dict)
    return context


def test_an_opened_context_has_its_interpreter_before_its_first_call(wire: Conversation) -> None:
    opened = wire.ask("open_context", name="a")
    assert opened["type"] == "context"
    assert (opened["name"], opened["calls"], opened["execution"], opened["queued"]) == ("a", 0, "", 0)
    assert opened["alive"] is True
    assert opened["age_s"] >= 0
    assert len(wire.user_processes()) == 1
    wire.python("1", "import os; x = os.environ['GREETING']", context="a")
    assert wire.finished("1")["exit_code"] == 1  # the environment is that of the first call
    assert len(wire.user_processes()) == 1
    assert the_only(wire)["calls"] == 1


def test_variables_live_in_their_own_context(wire: Conversation) -> None:
    for name in ("a", "b"):
        wire.ask("open_context", name=name)
        wire.python(f"set-{name}", f"x = {name!r}", context=name)
    wire.python("set", "x = 'default'")
    for name in ("a", "b", "default"):
        wire.python(f"get-{name}", f"assert x == {name!r}", context=name)
        assert wire.finished(f"get-{name}")["exit_code"] == 0
    assert names(wire) == ["a", "b", "default"]


def test_a_call_in_a_context_that_is_not_open_is_refused(wire: Conversation) -> None:
    wire.python("1", "pass", context="missing")
    refused = wire.expect("refused")
    assert (refused["execution"], refused["code"]) == ("1", "no_context")
    assert "missing" in refused["message"]
    wire.python("1", "pass")  # it never ran, so its id is free
    assert wire.finished("1")["exit_code"] == 0


def test_the_default_context_opens_by_itself(wire: Conversation) -> None:
    assert names(wire) == []
    wire.python("1", "x = 1")
    assert wire.finished("1")["exit_code"] == 0
    assert the_only(wire)["name"] == "default"


def test_opening_an_open_context_changes_nothing(wire: Conversation) -> None:
    wire.ask("open_context", name="a")
    wire.python("1", "x = 1", context="a")
    wire.finished("1")
    again = wire.ask("open_context", name="a")
    assert (again["type"], again["calls"], again["alive"]) == ("context", 1, True)
    wire.python("2", "assert x == 1", context="a")
    assert wire.finished("2")["exit_code"] == 0


def test_sixteen_contexts_may_be_open_and_the_default_one(wire: Conversation) -> None:
    orders = [wire.order("open_context", name=f"c{number}") for number in range(16)]
    assert {wire.answer(number)["type"] for number in orders} == {"context"}
    refused = wire.ask("open_context", name="one more")
    assert (refused["type"], refused["code"]) == ("context_refused", "full")
    wire.python("1", "pass")
    assert wire.finished("1")["exit_code"] == 0
    assert wire.ask("open_context", name="c3")["type"] == "context"
    assert wire.ask("close_context", name="c3")["alive"] is False
    assert wire.ask("open_context", name="one more")["type"] == "context"
    assert len(names(wire)) == 17


def test_closing_kills_what_runs_and_ends_what_waits(wire: Conversation) -> None:
    wire.ask("open_context", name="a")
    wire.python("runs", "import time; print('.', flush=True)\nwhile True: time.sleep(1000)", context="a")
    wire.follow("runs")
    wire.output_of("runs", 1)
    for number in range(3):
        wire.python(f"waits-{number}", "pass", context="a")
    assert the_only(wire)["execution"] == "runs"
    assert the_only(wire)["queued"] == 3
    closed = wire.ask("close_context", name="a")
    assert (closed["type"], closed["alive"], closed["queued"], closed["execution"]) == ("context", False, 0, "")
    ran = wire.finished("runs")
    assert (ran["cause"], ran["signal"], ran["state_preserved"], ran["attested"]) == ("close", 9, False, True)
    for number in range(3):
        waited = wire.finished(f"waits-{number}")
        assert (waited["cause"], waited["exit_code"], waited["signal"]) == ("close", None, None)
    assert wire.user_processes() == {}
    assert names(wire) == []


def test_closing_does_not_wait_for_a_program_that_ignores_interrupts(wire: Conversation) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(".", flush=True)
while True:
    try:
        while True: signal.pause()
    except BaseException:
        pass
"""
    wire.python("1", code)
    wire.follow("1")
    wire.output_of("1", 1)
    wire.send("cancel", execution="1")  # which waits for the interrupt to help
    closed = wire.ask("close_context", name="default")
    assert closed["type"] == "context"
    assert wire.finished("1")["cause"] == "cancel"
    assert wire.user_processes() == {}


def test_children_and_threads_of_an_idle_interpreter_die_when_it_is_closed(wire: Conversation) -> None:
    # A thread goes on between calls, and starts processes in sessions of their own. Another context has a call under
    # way, so that nothing is swept.
    wire.ask("open_context", name="busy")
    wire.python("busy", "import time; time.sleep(1000)", context="busy")
    code = """
import subprocess, threading, time
gate = threading.Event()
def later():
    gate.wait()
    time.sleep(0.05)
    for new in (True, False):
        subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"], start_new_session=new)
threading.Thread(target=later).start()
gate.set()
"""
    wire.ask("open_context", name="a")
    wire.python("1", code, context="a")
    wire.finished("1")
    while len([line for line in wire.user_processes().values() if line.startswith("sleep")]) < 4:
        wire.said("nothing")
    wire.ask("close_context", name="a")
    assert len(wire.user_processes()) == 1
    assert names(wire) == ["busy"]


def test_a_reset_context_has_a_new_interpreter_under_the_old_name(wire: Conversation) -> None:
    wire.ask("open_context", name="a")
    wire.python("1", "x = 1; print('.', flush=True); input()", context="a", stdin=True)
    wire.follow("1")
    wire.output_of("1", 1)
    wire.python("waits", "pass", context="a")
    number = wire.order("reset_context", name="a")
    wire.python("2", "assert 'x' not in globals()", context="a")
    assert (wire.finished("1")["cause"], wire.finished("waits")["cause"]) == ("close", "close")
    reset = wire.answer(number)
    assert (reset["type"], reset["alive"], reset["calls"]) == ("context", True, 0)
    second = wire.finished("2")
    assert (second["exit_code"], second["fresh_context"], second["state_preserved"]) == (0, False, True)


@pytest.mark.parametrize("order", ["close_context", "reset_context"])
def test_what_is_not_open_can_be_neither_closed_nor_reset(wire: Conversation, order: str) -> None:
    refused = wire.ask(order, name="missing")
    assert (refused["type"], refused["code"]) == ("context_refused", "not_found")
    assert "missing" in refused["message"]


def test_a_context_that_died_is_listed_as_dead_and_opens_again(wire: Conversation) -> None:
    wire.ask("open_context", name="a")
    wire.python("1", "import os; os._exit(3)", context="a")
    ended = wire.finished("1")
    assert (ended["exit_code"], ended["state_preserved"]) == (3, False)
    assert the_only(wire)["alive"] is False
    assert wire.ask("open_context", name="a")["alive"] is True
    wire.python("2", "pass", context="a")
    assert wire.finished("2")["fresh_context"] is True
    wire.python("3", "pass", context="a")
    assert wire.finished("3")["fresh_context"] is False


def test_contexts_closed_at_every_moment_of_a_call_leave_nothing(wire: Conversation) -> None:
    for round_number in range(40):
        name, execution = f"c{round_number % 3}", f"e{round_number}"
        opening = wire.order("open_context", name=name)
        if round_number % 4:
            wire.answer(opening)
        wire.python(execution, "import subprocess; subprocess.Popen(['sleep', '1000'])", context=name)
        for _ in range(round_number % 7):
            wire.said("nothing")  # a round trip later each time
        closing = wire.order("close_context", name=name)
        assert wire.answer(closing)["type"] == "context"
        finished = wire.finished(execution)
        assert finished["cause"] in ("close", None)
        assert finished["cause"] == "close" or finished["exit_code"] == 0
        if not round_number % 4:
            assert wire.answer(opening)["type"] in ("context", "context_refused")
    assert names(wire) == []
    assert wire.user_processes() == {}


def test_opening_closing_and_resetting_in_one_breath_answers_each(wire: Conversation) -> None:
    orders = ["open", "reset", "reset", "close", "close", "open", "close", "open", "open", "reset"]
    numbers = [wire.order(f"{order}_context", name="a") for order in orders]
    answers = [wire.answer(number) for number in numbers]
    assert answers[4]["code"] == "not_found"
    assert (answers[-1]["type"], answers[-1]["alive"]) == ("context", True)
    assert names(wire) == ["a"]
    assert len(wire.user_processes()) == 1


def test_parking_closes_contexts(wire: Conversation) -> None:
    wire.ask("open_context", name="a")
    wire.python("1", "import time; time.sleep(1000)", context="a")
    opening = wire.order("open_context", name="b")
    parked = wire.ask("park")
    assert parked["type"] == "parked"
    assert wire.finished("1")["cause"] == "park"
    assert wire.answer(opening)["type"] in ("context", "context_refused")
    assert names(wire) == []
    assert wire.user_processes() == {}


def test_an_interpreter_killed_while_it_starts_is_no_context(wire: Conversation) -> None:
    killer = """
import os, signal, time
print(".", flush=True)
deadline = time.monotonic() + 25
while time.monotonic() < deadline:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try: os.kill(int(name), signal.SIGKILL)
            except OSError: pass
"""
    wire.python("killer", killer, context=None)
    wire.follow("killer")
    wire.output_of("killer", 1)
    answers = [wire.ask("open_context", name=f"c{number}") for number in range(8)]
    assert {answer["type"] for answer in answers} <= {"context", "context_refused"}
    assert {answer["code"] for answer in answers if answer["type"] == "context_refused"} <= {"no_process"}
    wire.send("cancel", execution="killer")
    wire.finished("killer")
    assert wire.ask("open_context", name="after")["alive"] is True


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("open_context", {"number": 1, "name": ["a"]}),
        ("open_context", {"number": 1, "name": ""}),
        ("open_context", {"number": 1, "name": "a" * 400}),
        ("close_context", {"number": "1", "name": "a"}),
        ("reset_context", {"number": None, "name": "a"}),
        ("list_contexts", {"number": {}}),
        ("list_contexts", {"number": -1}),
        ("sample", {"number": [1], "execution": "runs"}),
    ],
)
def test_a_wish_that_makes_no_sense_ends_the_connection_and_nothing_else(
    wire: Conversation, kind: str, fields: dict[str, object]
) -> None:
    wire.shell("runs", "echo .; sleep 1000")
    wire.follow("runs")
    wire.output_of("runs", 1)
    wire.send(kind, **fields)
    wire.accept()
    assert names(wire) == []
    assert wire.ask("sample", execution="runs")["usage"]["pids"] >= 1
