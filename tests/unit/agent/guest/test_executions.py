"""The end of executions, and the records of it."""

from __future__ import annotations

import os
import time

import pytest

from enclaved.agent.guest import records
from enclaved.agent.guest.execution import Execution
from enclaved.agent.guest.guest import Guest
from enclaved.agent.guest.limits import RECORD_KEPT_S, STDERR, STDOUT
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


def test_records_go_by_age_and_number_but_not_from_under_a_reader(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORDS_KEPT", 3)
    made = []
    for number in range(6):
        execution = execution_in("queued")
        execution.name = str(number)
        guest.records.by_name[execution.name] = execution
        if number == 1:
            subscription = {"reader": 7, "offsets": {}, "credit_bytes": 0}
            guest.readers.on_subscribe(execution, subscription)
            execution.journal.append(STDOUT, b"unread", 0.0)
            guest.output.journal_bytes = execution.journal.size
        guest.executions.complete(execution)
        made.append(execution)
    assert list(guest.records.by_name) == ["1", "4", "5"]
    later = time.monotonic() + RECORD_KEPT_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    guest.records.expire()
    assert list(guest.records.by_name) == ["1", "4", "5"]  # no daemon has heard of their ends
    monkeypatch.setattr(guest.link, "present_since", lambda moment: moment)
    guest.records.expire()
    assert list(guest.records.by_name) == ["1"]
    made[1].readers.clear()
    guest.records.expire()
    assert (guest.records.by_name, list(guest.records.ended), guest.output.journal_bytes) == ({}, [], 0)
