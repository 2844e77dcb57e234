"""From what the guest saw and the control group counted to the verdict."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.verdicts import Evidence, conclude, lost
from enclaved.model import ExceptionInfo, Finished, LimitHit, Verdict

RAISED = {"type": "ValueError", "message": "no"}
KILLED = {"signal": signal.SIGKILL.value}


def ended(evidence: Evidence | None = None, **report: Any) -> Finished:
    return conclude(report, evidence or Evidence(timeout_s=2.5))


@pytest.mark.parametrize(
    ("report", "evidence", "verdict", "message"),
    [
        ({"exit_code": 0}, {}, Verdict.EXITED, ""),
        ({"exit_code": 3}, {}, Verdict.EXITED, "exited with code 3"),
        ({"exit_code": 124}, {}, Verdict.EXITED, "exited with code 124"),
        ({"exit_code": 137}, {"oom_kills": 1}, Verdict.EXITED, "exited with code 137"),
        ({"exit_code": 1, "exception": RAISED}, {}, Verdict.EXCEPTION, "ValueError: no"),
        ({"exit_code": 1, "exception": {"type": "KeyError"}}, {}, Verdict.EXCEPTION, "KeyError"),
        ({"exit_code": 0, "exception": RAISED}, {}, Verdict.EXITED, ""),
        (KILLED, {}, Verdict.SIGNALED, "killed by signal 9 (SIGKILL)"),
        ({"signal": 11}, {}, Verdict.SIGNALED, "killed by signal 11 (SIGSEGV)"),
        ({"signal": 40}, {}, Verdict.SIGNALED, "killed by signal 40 (a real-time signal)"),
        (
            KILLED,
            {"oom_kills": 1},
            Verdict.OUT_OF_MEMORY,
            "killed by the kernel: the sandbox reached its memory limit",
        ),
        (KILLED, {"oom_kills": 1, "alone": False}, Verdict.SIGNALED, "killed by signal 9 (SIGKILL)"),
        ({"signal": 15}, {"oom_kills": 1}, Verdict.SIGNALED, "killed by signal 15 (SIGTERM)"),
        (
            {"signal": signal.SIGXFSZ.value},
            {},
            Verdict.DISK_LIMIT,
            "killed by the kernel: it reached the limit for the size of a file",
        ),
        ({**KILLED, "cause": "timeout"}, {"oom_kills": 1}, Verdict.TIMEOUT, "timed out after 2.5 seconds"),
        ({"exit_code": 1, "exception": RAISED, "cause": "timeout"}, {}, Verdict.TIMEOUT, "timed out after 2.5 seconds"),
        ({**KILLED, "cause": "cancel"}, {"cancelled_by": "a client"}, Verdict.CANCELLED, "cancelled by a client"),
        ({"cause": "cancel"}, {}, Verdict.CANCELLED, "cancelled"),
        (
            {**KILLED, "cause": "output_limit"},
            {},
            Verdict.OUTPUT_LIMIT,
            "killed: it wrote more than its output limit",
        ),
        ({**KILLED, "cause": "park"}, {}, Verdict.SANDBOX_LOST, "the sandbox was stopped"),
        ({}, {}, Verdict.INTERNAL_ERROR, "the guest could not say how it ended"),
        ({"cause": "weather", "exit_code": 0}, {}, Verdict.EXITED, ""),
    ],
)
def test_evidence_decides(report: dict[str, Any], evidence: dict[str, Any], verdict: Verdict, message: str) -> None:
    finished = conclude(report, Evidence(**{"timeout_s": 2.5, **evidence}))
    assert (finished.verdict, finished.message) == (verdict, message)
    assert finished.timeout_s == 2.5


def test_the_whole_report_is_taken_over() -> None:
    finished = conclude(
        {
            "exit_code": 1,
            "signal": None,
            "attested": True,
            "exception": {**RAISED, "errno": 2},
            "state_preserved": False,
            "bytes_total": {"1": 10, "2": 20},
            "usage": {"cpu_user_s": 0.5, "cpu_system_s": 1, "memory_peak_bytes": 7, "io_read_bytes": 8},
            "phases": {"queued_s": 1, "starting_s": 2, "running_s": 3, "draining_s": 4},
        },
        Evidence(timeout_s=1, oom_kills=2, pids_limit_hits=3),
    )
    assert finished.exception == ExceptionInfo("ValueError", "no", 2)
    assert finished.attested is True
    assert finished.state_preserved is False
    assert finished.bytes_total == {1: 10, 2: 20}
    usage, phases = finished.usage, finished.phases
    assert (usage.cpu_user_s, usage.cpu_system_s, usage.memory_peak_bytes) == (0.5, 1.0, 7)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (8, 0)
    assert (phases.queued_s, phases.starting_s, phases.running_s, phases.draining_s) == (1, 2, 3, 4)
    assert finished.limits_hit == (LimitHit("memory", 2), LimitHit("pids", 3))


def test_a_limit_that_a_program_survived_is_told_beside_its_own_end() -> None:
    finished = conclude({"exit_code": 0}, Evidence(timeout_s=1, pids_limit_hits=9))
    assert (finished.verdict, finished.limits_hit) == (Verdict.EXITED, (LimitHit("pids", 9),))


HOSTILE = [
    None,
    True,
    -1,
    256,
    10**400,
    -(10**400),
    math.nan,
    math.inf,
    -math.inf,
    "0",
    "\ud800" * 10_000,
    "x" * 100_000,
    [],
    {},
    {"type": [], "message": {}, "errno": "no"},
    {"1": -5, "2": 10**400},
    {"cpu_user_s": 10**400, "memory_peak_bytes": 1.5, "running_s": math.nan},
]
FIELDS = (
    "exit_code",
    "signal",
    "cause",
    "attested",
    "exception",
    "state_preserved",
    "fresh_context",
    "usage",
    "bytes_total",
    "phases",
)


def check_that_it_can_be_told(finished: Finished) -> None:
    """Whatever the report says, the wire must be able to carry what comes of it."""
    for code in (finished.exit_code, finished.signal):
        assert code is None or 0 <= code <= 255
    assert len(finished.message.encode()) < 32 * 1024
    if finished.exception is not None:
        assert len(finished.exception.type.encode()) <= 256 * 4
        assert len(finished.exception.message.encode()) <= 4096 * 4
    for total in finished.bytes_total.values():
        assert 0 <= total < 2**63
    seconds = (finished.usage.cpu_user_s, finished.usage.cpu_system_s, finished.phases.running_s)
    assert all(0 <= value < 1e15 for value in seconds)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_hostile_field_counts_as_absent(field: str, value: object) -> None:
    check_that_it_can_be_told(ended(**{field: value}))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, "\udfff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
claims = st.dictionaries(st.sampled_from(["type", "message", "errno", "1", "2", "cpu_user_s", "running_s"]), anything)


@given(st.dictionaries(st.sampled_from(FIELDS), anything | claims))
def test_no_report_raises(report: dict[str, Any]) -> None:
    check_that_it_can_be_told(ended(**report))


def test_a_nested_report_does_not_exhaust_the_stack() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for field in FIELDS:
        check_that_it_can_be_told(ended(**{field: nested}))
        check_that_it_can_be_told(ended(**{field: {"type": nested, "message": nested, "1": nested}}))


def test_losing_the_sandbox_is_a_verdict_of_its_own() -> None:
    finished = lost("its container ended", 3.0)
    assert (finished.verdict, finished.message, finished.timeout_s) == (
        Verdict.SANDBOX_LOST,
        "its container ended",
        3.0,
    )
    assert finished.exit_code is None
