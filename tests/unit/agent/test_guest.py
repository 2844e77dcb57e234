"""Parts of the guest that depend on the order of events, which no program can choose."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from enclaved.agent import guest as guest_module
from enclaved.agent.guest import (
    SOURCES_BYTES,
    SOURCES_KEPT,
    STDERR,
    STDOUT,
    Child,
    Execution,
    Guest,
    Interpreter,
    _claim,
)


class Deaths:
    """Processes that ``wait4`` tells of: none of them is this test's."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def wait4(self, pid: int, options: int) -> tuple[int, int, resource.struct_rusage]:
        assert (pid, options) == (-1, os.WNOHANG)
        return (self.pids.pop(0) if self.pids else 0), 0, resource.getrusage(resource.RUSAGE_SELF)


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> Deaths:
    """See `Deaths`."""
    made = Deaths()
    monkeypatch.setattr(os, "wait4", made.wait4)
    return made


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest that is not served; nothing is started and nobody is connected."""
    made = Guest("--child", "/nonexistent", {"uid": -1, "working_dir": "/"})
    with contextlib.closing(made.poll):
        yield made


@contextlib.contextmanager
def asked_for(guest: Guest) -> Iterator[tuple[Child, socket.socket]]:
    """A child that the template has been asked for. What is sent by the other end comes from this process's pid."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.setblocking(False)
    child = Child(ours)
    guest.spawning.append(child)
    guest.watch(ours.fileno(), guest.readable, lambda _: None)
    with theirs, contextlib.closing(ours):
        yield child, theirs


def test_a_stranger_that_ended_before_a_child_was_asked_for_does_not_end_it(guest: Guest, deaths: Deaths) -> None:
    """Numbers of processes are used again."""
    with asked_for(guest):
        deaths.pids = [os.getpid()]
        guest.reap()  # might have been the first child, which has not said its number yet
        with asked_for(guest) as (child, theirs):
            theirs.sendall(_claim({"hello": True}) + _claim({"ready": True}))
            guest.read_child(child)
            assert child.pid == os.getpid()
            assert guest.children == {os.getpid(): child}
            assert list(guest.standby) == [child]
            assert not child.silent


def test_a_child_that_ended_before_its_number_was_known_is_gone(guest: Guest, deaths: Deaths) -> None:
    with asked_for(guest) as (child, theirs):
        theirs.sendall(_claim({"hello": True}) + _claim({"ready": True}))
        deaths.pids = [os.getpid()]
        guest.reap()
        guest.read_child(child)
        assert (guest.children, list(guest.standby), guest.spawning) == ({}, [], [])


def test_deaths_of_strangers_are_not_kept_when_nobody_is_asked_for_nor_without_end(
    guest: Guest, deaths: Deaths
) -> None:
    with asked_for(guest) as (child, _):
        deaths.pids = list(range(10_000, 14_000))
        guest.reap()
        assert len(guest.early_exits) <= 1025
        guest.spawning.remove(child)
        deaths.pids = [20_000]
        guest.reap()
        assert guest.early_exits == {}


def execution_in(state: str, **header: object) -> Execution:
    execution = Execution("x", {"timeout_s": 1, "job_bytes": 0, **header})
    execution.enter(state)
    return execution


@pytest.mark.parametrize(("limit", "cause"), [(9, "output_limit"), (10, None), (None, None)])
def test_a_program_that_ended_before_its_output_was_read_has_met_its_limit(
    guest: Guest, deaths: Deaths, limit: int | None, cause: str | None
) -> None:
    execution = execution_in("draining", output_limit_bytes=limit)
    execution.status = 0
    for channel, data in ((STDOUT, b"12345"), (STDERR, b"67890")):
        execution.pipes[channel], write_end = os.pipe()
        os.set_blocking(execution.pipes[channel], False)
        os.write(write_end, data)
        os.close(write_end)
    guest.complete(execution)
    assert execution.finished is not None
    assert (execution.finished["cause"], execution.finished["exit_code"]) == (cause, 0)
    assert sum(execution.finished["bytes_total"].values()) == (limit or 10)
    assert execution.pipes == {}


@pytest.mark.parametrize("cause", ["timeout", "cancel"])
def test_a_program_that_was_ended_for_another_reason_keeps_it_when_its_output_turns_out_too_long(
    guest: Guest, deaths: Deaths, cause: str
) -> None:
    execution = execution_in("draining", output_limit_bytes=3)
    execution.cause = cause
    execution.pipes[STDOUT], write_end = os.pipe()
    os.set_blocking(execution.pipes[STDOUT], False)
    os.write(write_end, b"12345")
    os.close(write_end)
    guest.complete(execution)
    assert execution.finished is not None
    assert execution.finished["cause"] == cause


def test_records_go_by_age_and_number_but_not_from_under_a_reader(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "RECORDS_KEPT", 3)
    made = []
    for number in range(6):
        execution = execution_in("queued")
        execution.name = str(number)
        guest.executions[execution.name] = execution
        if number == 1:
            subscription = {"reader": 7, "offsets": {}, "credit_bytes": 0}
            guest.on_subscribe(execution, subscription)
            execution.journal.append(STDOUT, b"unread", 0.0)
            guest.journal_bytes = execution.journal.size
        guest.complete(execution)
        made.append(execution)
    assert list(guest.executions) == ["1", "4", "5"]
    later = time.monotonic() + guest_module.RECORD_KEPT_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    guest.expire_records()
    assert list(guest.executions) == ["1"]
    made[1].readers.clear()
    guest.expire_records()
    assert (guest.executions, list(guest.records), guest.journal_bytes) == ({}, [], 0)


class Linecache:
    """What an interpreter uses of ``linecache``."""

    def __init__(self) -> None:
        self.cache: dict[str, object] = {}


@pytest.fixture
def interpreter() -> Interpreter:
    """One that runs nothing: to make it as a program makes it would change this process."""
    made = Interpreter.__new__(Interpreter)
    made.linecache, made.sources, made.source_bytes = Linecache(), guest_module.collections.deque(), 0
    return made


def test_twenty_thousand_short_calls_keep_a_bounded_number_of_sources(interpreter: Interpreter) -> None:
    for number in range(20_000):
        interpreter.remember_source(f"<call {number}>", "pass")
    latest = [f"<call {number}>" for number in range(20_000 - SOURCES_KEPT, 20_000)]
    assert list(interpreter.linecache.cache) == latest
    assert [name for name, _ in interpreter.sources] == latest
    assert interpreter.source_bytes == 4 * SOURCES_KEPT


def test_large_sources_are_kept_up_to_a_size_and_the_latest_always(interpreter: Interpreter) -> None:
    for number in range(10):
        interpreter.remember_source(f"<call {number}>", "#" * (SOURCES_BYTES // 3))
        assert interpreter.source_bytes <= SOURCES_BYTES
    assert list(interpreter.linecache.cache) == ["<call 7>", "<call 8>", "<call 9>"]
    interpreter.remember_source("<huge>", "#" * (3 * SOURCES_BYTES))
    assert list(interpreter.linecache.cache) == ["<huge>"]
    interpreter.remember_source("<small>", "pass")
    assert (list(interpreter.linecache.cache), interpreter.source_bytes) == (["<small>"], 4)
