"""The end of executions, and the records of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from enclaved.agent.guest import records
from enclaved.agent.guest.execution import Execution
from enclaved.agent.guest.guest import Guest
from enclaved.agent.guest.limits import RECORD_KEPT_S, RECORD_SETTLED_S, STDERR, STDOUT
from tests.unit.agent.guest.conftest import Deaths


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
    guest.executions.complete(execution)
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
    guest.executions.complete(execution)
    assert execution.finished is not None
    assert execution.finished["cause"] == cause


def ends(guest: Guest, name: str, output: bytes = b"", **header: object) -> Execution:
    """An execution that has just ended with some output."""
    execution = execution_in("queued", **header)
    execution.name = name
    guest.records.by_name[name] = execution
    if output:
        guest.output.append(execution, STDOUT, output, 0.0)
    guest.executions.complete(execution)
    return execution


def read(guest: Guest, execution: Execution) -> None:
    """Lets somebody follow an execution."""
    guest.readers.on_subscribe(execution, {"reader": 7, "offsets": {}, "credit_bytes": 0})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is changed."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def daemon(guest: Guest) -> Iterator[socket.socket]:
    """A daemon that is connected and says nothing."""
    guest.link.daemon, theirs = socket.socketpair()
    with theirs, guest.link.daemon:
        guest.link.connected_at = time.monotonic()
        yield theirs


def test_records_go_by_age_but_not_from_under_a_reader_and_not_without_a_daemon(
    guest: Guest, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [ends(guest, str(number), b"unread") for number in range(3)]
    read(guest, made[1])
    clock[0] += RECORD_KEPT_S
    guest.records.expire()
    assert list(guest.records.by_name) == ["0", "1", "2"]  # no daemon has heard of their ends
    monkeypatch.setattr(guest.link, "present_since", lambda moment: moment)
    guest.records.expire()
    assert list(guest.records.by_name) == ["1"]
    made[1].readers.clear()
    guest.records.expire()
    assert (guest.records.by_name, list(guest.records.ended), guest.output.room.journal_bytes) == ({}, [], 0)


def test_records_go_by_number_only_if_nobody_needs_them_and_their_end_is_written_down(
    guest: Guest, daemon: socket.socket, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORDS_KEPT", 2)
    ends(guest, "unread", b"unread")
    ends(guest, "last kept", b"last", keep_last_bytes=4096)
    read(guest, ends(guest, "being read"))
    delivered = ends(guest, "delivered", b"delivered")
    guest.output.on_may_go(delivered)
    ends(guest, "silent")
    assert len(guest.records.ended) == 5  # a daemon that is killed now has not written down how they ended
    clock[0] += RECORD_SETTLED_S
    ends(guest, "new")
    ends(guest, "newer")
    ends(guest, "newest")
    assert list(guest.records.by_name) == ["unread", "last kept", "being read", "new", "newer", "newest"]


def test_where_too_many_are_known_one_that_nobody_needs_gives_way_and_output_that_was_not_read_never(
    guest: Guest, daemon: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "EXECUTIONS_MAX", 3)
    ends(guest, "last kept", b"last", keep_last_bytes=4096)
    ends(guest, "unread", b"unread")
    ends(guest, "silent")
    assert guest.records.has_place()
    assert list(guest.records.by_name) == ["last kept", "unread"]
    ends(guest, "unread too", b"unread")
    assert guest.records.has_place()
    assert list(guest.records.by_name) == ["unread", "unread too"]
    ends(guest, "third", b"unread")
    assert not guest.records.has_place()
    refusal = guest.intake.refusal(execution_in("queued"))
    assert refusal is not None
    assert refusal[0] == "full"


def test_an_execution_that_is_refused_gives_back_the_room_of_late_output(guest: Guest) -> None:
    execution = execution_in("starting")
    guest.records.by_name[execution.name] = execution
    guest.output.keep_late(execution, STDOUT, b"late")
    assert guest.output.room.journal_bytes > 0
    guest.executions.refuse(execution, "no_process", "")
    assert guest.output.room.journal_bytes == 0
