"""From what the guest saw and the control group counted to the verdict."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.possible import IO_BYTES_PER_S, Bounds
from enclaved.core.verdicts import Evidence, conclude, failed, lost
from enclaved.model import ExceptionInfo, Finished, LimitHit, ResourceUsage, SignalSender, Verdict

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
            {"oom_kills": 1, "oom_kills_alone": 1},
            Verdict.OUT_OF_MEMORY,
            "killed by the kernel: the sandbox reached its memory limit",
        ),
        (KILLED, {"oom_kills": 1}, Verdict.SIGNALED, "killed by signal 9 (SIGKILL)"),
        (
            {**KILLED, "signalled": [9]},
            {"oom_kills": 1, "oom_kills_alone": 1},
            Verdict.SIGNALED,
            "killed by signal 9 (SIGKILL)",
        ),
        ({"signal": 25, "signalled": [25]}, {}, Verdict.SIGNALED, "killed by signal 25 (SIGXFSZ)"),
        ({"signal": 15}, {"oom_kills": 1, "oom_kills_alone": 1}, Verdict.SIGNALED, "killed by signal 15 (SIGTERM)"),
        (
            {"signal": signal.SIGXFSZ.value},
            {},
            Verdict.DISK_LIMIT,
            "ended by SIGXFSZ, as the kernel does at the limit for the size of a file",
        ),
        ({**KILLED, "cause": "timeout"}, {"oom_kills": 1}, Verdict.TIMEOUT, "timed out after 2.5 seconds"),
        ({"exit_code": 1, "exception": RAISED, "cause": "timeout"}, {}, Verdict.TIMEOUT, "timed out after 2.5 seconds"),
        ({**KILLED, "cause": "cancel"}, {"cancelled_by": "a client"}, Verdict.CANCELLED, "cancelled by a client"),
        ({"cause": "cancel"}, {}, Verdict.CANCELLED, "cancelled"),
        (
            {**KILLED, "cause": "output_limit"},
            {"output_limit_bytes": 10},
            Verdict.OUTPUT_LIMIT,
            "killed: it wrote more than its output limit",
        ),
        ({**KILLED, "cause": "output_limit"}, {}, Verdict.SIGNALED, "killed by signal 9 (SIGKILL)"),
        (
            {**KILLED, "cause": "idle_timeout"},
            {"idle_timeout_s": 1.5},
            Verdict.IDLE_TIMEOUT,
            "timed out after 1.5 seconds without output or taken input",
        ),
        ({"exit_code": 0, "cause": "idle_timeout"}, {}, Verdict.EXITED, ""),
        (
            {**KILLED, "cause": "cancel"},
            {"cancelled_by": "the daemon", "killed_at_pids_limit": True},
            Verdict.PIDS_LIMIT,
            "killed: the sandbox reached its limit of processes, at which this daemon's policy kills",
        ),
        (
            {**KILLED, "cause": "timeout"},
            {"killed_at_pids_limit": True},
            Verdict.TIMEOUT,
            "timed out after 2.5 seconds",
        ),
        (
            {**KILLED, "cause": "close"},
            {},
            Verdict.CANCELLED,
            "cancelled by the daemon: its context was closed or reset",
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


@pytest.mark.parametrize(
    ("report", "evidence", "sender"),
    [
        ({"exit_code": 0}, {}, None),
        (KILLED, {}, None),
        ({"signal": 11, "signalled": [15]}, {}, None),
        ({"signal": 15, "signalled": [2, 15]}, {}, SignalSender.CALLER),
        ({**KILLED, "signalled": [9]}, {"oom_kills_alone": 1}, SignalSender.CALLER),
        (KILLED, {"oom_kills_alone": 1}, SignalSender.KERNEL),
        ({"signal": 25}, {}, None),  # the program may have sent it to itself
        ({"signal": 9, "cause": "hoard", "reason": "too much"}, {}, SignalSender.DAEMON),
        ({**KILLED, "cause": "timeout"}, {}, SignalSender.DAEMON),
        ({"signal": 2, "cause": "cancel"}, {}, SignalSender.DAEMON),
        ({"signal": 11, "cause": "timeout"}, {}, None),
        ({**KILLED, "cause": "output_limit"}, {}, None),
        ({"signal": 15, "cause": "timeout", "signalled": [15]}, {}, SignalSender.CALLER),
        ({"exit_code": 1, "cause": "timeout"}, {}, None),
    ],
)
def test_who_sent_the_signal_is_told_as_far_as_it_is_known(
    report: dict[str, Any], evidence: dict[str, Any], sender: SignalSender | None
) -> None:
    assert conclude(report, Evidence(timeout_s=1, **evidence)).signal_sender is sender


def test_who_cancelled_it_is_told_for_what_was_cancelled_only() -> None:
    by = Evidence(timeout_s=1, cancelled_by="a caller")
    assert conclude({**KILLED, "cause": "cancel"}, by).cancelled_by == "a caller"
    assert conclude({"exit_code": 0}, by).cancelled_by == ""
    assert conclude({**KILLED, "cause": "close"}, by).cancelled_by == "the daemon: its context was closed or reset"


def test_a_fault_of_ours_says_nothing_about_the_program() -> None:
    finished = failed("the daemon ended", 3.0)
    assert (finished.verdict, finished.attested, finished.exit_code) == (Verdict.INTERNAL_ERROR, False, None)


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
            "disks_full": 1,
        },
        Evidence(
            timeout_s=1,
            oom_kills=2,
            memory_peak_bytes=99,
            memory_limit_bytes=100,
            pids_limit_hits=3,
            pids_peak=4,
            pids_limit=5,
        ),
    )
    assert finished.exception == ExceptionInfo("ValueError", "no", 2)
    assert finished.attested is True
    assert finished.state_preserved is False
    assert finished.bytes_total == {1: 10, 2: 20}
    usage, phases = finished.usage, finished.phases
    assert (usage.cpu_user_s, usage.cpu_system_s, usage.memory_peak_bytes) == (0.5, 1.0, 7)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (8, 0)
    assert (phases.queued_s, phases.starting_s, phases.running_s, phases.draining_s) == (1, 2, 3, 4)
    assert finished.limits_hit == (LimitHit("memory", 2, 99, 100), LimitHit("pids", 3, 4, 5), LimitHit("disk", 1))


def test_no_more_is_used_than_can_be() -> None:
    lie = {
        "cpu_user_s": 9e11,
        "cpu_system_s": 9e11,
        "memory_peak_bytes": 2**62,
        "io_read_bytes": 2**62,
        "io_write_bytes": 2**62,
    }
    phases = {"queued_s": 9e9, "starting_s": 0.5, "running_s": 1.5, "draining_s": 9e9}
    bounds = Bounds(lasted_s=4.0, cores=2.0, memory_bytes=1000, pids=5)
    finished = conclude({"exit_code": 0, "usage": lie, "phases": phases}, Evidence(timeout_s=1, bounds=bounds))
    assert (finished.phases.queued_s, finished.phases.running_s, finished.phases.draining_s) == (5.0, 1.5, 5.0)
    usage = finished.usage
    assert (usage.cpu_user_s, usage.cpu_system_s, usage.memory_peak_bytes) == (10.0, 0.0, 1000)
    assert usage.io_read_bytes == usage.io_write_bytes == 5 * IO_BYTES_PER_S
    short = conclude(
        {"exit_code": 0, "usage": lie, "phases": {"running_s": 0.5}}, Evidence(timeout_s=1, bounds=bounds)
    ).usage
    assert short.cpu_user_s == 3.0
    true = {"cpu_user_s": 1.5, "cpu_system_s": 0.5, "memory_peak_bytes": 7, "io_read_bytes": 8}
    told = conclude({"exit_code": 0, "usage": true, "phases": {"running_s": 1.0}}, Evidence(timeout_s=1, bounds=bounds))
    assert told.usage == ResourceUsage(1.5, 0.5, 7, 8, 0)


@pytest.mark.parametrize("code", [0, 2, 124, 137])
def test_an_exception_counts_only_with_the_exit_code_that_the_interpreter_ends_with(code: int) -> None:
    report = {"exit_code": code, "attested": True, "exception": {"type": "MemoryError", "message": "forged"}}
    finished = conclude(report, Evidence(timeout_s=1))
    assert (finished.verdict, finished.exit_code, finished.exception) == (Verdict.EXITED, code, None)


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
    "signalled",
    "disks_full",
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


causes = st.sampled_from(["timeout", "idle_timeout", "cancel", "close", "output_limit", "park"])
numbers = st.integers(-1, 300)
plausible = st.fixed_dictionaries(
    {}, optional={"exit_code": numbers, "signal": numbers, "cause": causes, "signalled": st.lists(numbers, max_size=4)}
)
reports = st.dictionaries(st.sampled_from(FIELDS), anything | claims) | plausible
evidences = st.builds(
    Evidence,
    timeout_s=st.floats(0.1, 1e9),
    idle_timeout_s=st.sampled_from([0.0, 2.0]),
    output_limit_bytes=st.sampled_from([None, 5]),
    oom_kills=st.integers(0, 2),
    oom_kills_alone=st.integers(0, 2),
    pids_limit_hits=st.integers(0, 2),
    killed_at_pids_limit=st.booleans(),
    cancelled_by=st.sampled_from(["", "a caller"]),
)


@given(reports, evidences)
def test_no_report_raises_or_says_what_there_is_no_evidence_for(report: dict[str, Any], evidence: Evidence) -> None:
    finished = conclude(report, evidence)
    check_that_it_can_be_told(finished)
    verdict = finished.verdict
    needs = {
        Verdict.IDLE_TIMEOUT: evidence.idle_timeout_s > 0,
        Verdict.OUTPUT_LIMIT: evidence.output_limit_bytes is not None,
        Verdict.OUT_OF_MEMORY: evidence.oom_kills_alone > 0 and finished.signal == 9,
        Verdict.PIDS_LIMIT: evidence.killed_at_pids_limit,
        Verdict.DISK_LIMIT: finished.signal == 25,
        Verdict.SIGNALED: finished.signal is not None,
        Verdict.EXCEPTION: finished.exception is not None and finished.exit_code != 0,
        Verdict.EXITED: finished.exit_code is not None,
    }
    assert needs.get(verdict, True)
    if verdict in (Verdict.TIMEOUT, Verdict.CANCELLED, Verdict.SANDBOX_LOST):
        assert report["cause"] in ("timeout", "cancel", "close", "park")
    if finished.signal_sender is SignalSender.KERNEL:
        assert verdict is Verdict.OUT_OF_MEMORY
    if finished.signal_sender is SignalSender.CALLER:
        assert finished.signal in report["signalled"]
    assert {hit.limit for hit in finished.limits_hit} >= ({"memory"} if evidence.oom_kills else set())
    assert not finished.cancelled_by or verdict is Verdict.CANCELLED


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
