"""From what the guest saw and the control group counted to the verdict: one pure function.

Nothing is guessed from an exit code: 124 and 137 are exit codes like any other. A signal, a limit or our own hand is
evidence of its own, and what the guest says is believed only as far as it can be: nobody times out without a timeout.
"""

from __future__ import annotations

import math
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from enclaved.core.possible import Bounds
from enclaved.model import ExceptionInfo, Finished, LimitHit, Phases, ResourceUsage, SignalSender, Verdict

_SECONDS_MAX = 1e12
_SIGNAL_MAX = 64
_SIGNALS_TOLD_MAX = 1024
_OUR_SIGNALS = (signals.SIGKILL, signals.SIGINT)
"""What the guest sends to end or interrupt a program."""
_CHANNELS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the daemon knows beside the guest's report."""

    timeout_s: float
    idle_timeout_s: float = 0.0
    """0: it had none, so it cannot have reached it."""
    output_limit_bytes: int | None = None
    oom_kills: int = 0
    """Kills by the kernel for lack of memory in the sandbox while it ran."""
    oom_kills_alone: int = 0
    """Those of them in which nothing else ran there that could have been meant."""
    memory_peak_bytes: int = 0
    memory_limit_bytes: int = 0
    pids_limit_hits: int = 0
    pids_peak: int = 0
    pids_limit: int = 0
    killed_at_pids_limit: bool = False
    """Whether the daemon ended it since policy wants that at the limit of processes."""
    cancelled_by: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    """What it can have used at most."""


class _End(NamedTuple):
    """How the process ended, as the guest tells it, and who may have a hand in that."""

    exit_code: int | None
    signal: int | None
    exception: ExceptionInfo | None
    cause: str
    signalled: frozenset[int]
    """The signals that callers have sent."""
    disks_full: int
    reason: str = ""
    """What the guest says of a cause that is its own."""


def conclude(report: Mapping[str, Any], evidence: Evidence) -> Finished:
    """Decides how an execution ended. The report is hostile input: fields of the wrong type count as absent."""
    exit_code = _integer(report.get("exit_code"))
    end = _End(
        exit_code=exit_code,
        signal=_signal(report.get("signal")) if exit_code is None else None,
        # An interpreter that ended by an exception ends with 1, whatever else the program in it claims.
        exception=_exception(report.get("exception")) if exit_code == 1 else None,
        cause=_believed_cause(report.get("cause"), evidence),
        signalled=_signals(report.get("signalled")),
        disks_full=_count(report.get("disks_full")),
        reason=_text(report.get("reason"), 1000),
    )
    verdict = _verdict(end, evidence)
    preserved = report.get("state_preserved")
    phases = evidence.bounds.phases(_phases(report.get("phases")))
    cancelled_by = _canceller(end, evidence) if verdict is Verdict.CANCELLED else ""
    return Finished(
        verdict=verdict,
        exit_code=end.exit_code,
        signal=end.signal,
        message=_message(verdict, end, evidence, cancelled_by),
        attested=report.get("attested") is True,
        exception=end.exception,
        bytes_total=_totals(report.get("bytes_total")),
        usage=evidence.bounds.usage(_usage(report.get("usage")), _spent_s(phases)),
        phases=phases,
        state_preserved=preserved if isinstance(preserved, bool) else None,
        limits_hit=_limits(end, evidence),
        timeout_s=evidence.timeout_s,
        signal_sender=_sender(verdict, end),
        cancelled_by=cancelled_by,
    )


def lost(why: str, timeout_s: float) -> Finished:
    """Says that the sandbox went away under an execution."""
    return Finished(verdict=Verdict.SANDBOX_LOST, message=why, attested=True, timeout_s=timeout_s)


def failed(why: str, timeout_s: float) -> Finished:
    """Says that an execution was accepted and that it is not known what became of it, by a fault that is not its own.

    It was not run a second time.
    """
    return Finished(verdict=Verdict.INTERNAL_ERROR, message=why, attested=False, timeout_s=timeout_s)


def _believed_cause(claimed: object, evidence: Evidence) -> str:
    """What made the guest end it; empty for what cannot be, and if the program ended by itself."""
    match claimed:
        case "timeout" | "cancel" | "close" | "park" | "claims" | "hoard" | "unprepared":
            return str(claimed)
        case "idle_timeout" if evidence.idle_timeout_s > 0:
            return "idle_timeout"
        case "output_limit" if evidence.output_limit_bytes is not None:
            return "output_limit"
        case _:
            return ""


_BY_CAUSE = {
    "timeout": Verdict.TIMEOUT,
    "idle_timeout": Verdict.IDLE_TIMEOUT,
    "cancel": Verdict.CANCELLED,
    "close": Verdict.CANCELLED,
    "output_limit": Verdict.OUTPUT_LIMIT,
    "park": Verdict.SANDBOX_LOST,
    "claims": Verdict.SIGNALED,
    "hoard": Verdict.SIGNALED,
    "unprepared": Verdict.INTERNAL_ERROR,
}


def _verdict(end: _End, evidence: Evidence) -> Verdict:
    if end.cause == "cancel" and evidence.killed_at_pids_limit:
        return Verdict.PIDS_LIMIT
    if end.cause:
        return _BY_CAUSE[end.cause]
    if end.signal is not None:
        if end.signal in end.signalled:
            return Verdict.SIGNALED
        if end.signal == signals.SIGKILL and evidence.oom_kills_alone > 0:
            return Verdict.OUT_OF_MEMORY
        return Verdict.DISK_LIMIT if end.signal == signals.SIGXFSZ else Verdict.SIGNALED
    if end.exception is not None:
        return Verdict.EXCEPTION
    return Verdict.EXITED if end.exit_code is not None else Verdict.INTERNAL_ERROR


def _canceller(end: _End, evidence: Evidence) -> str:
    if end.cause == "close":
        return "the daemon: its context was closed or reset"
    return evidence.cancelled_by


def _sender(verdict: Verdict, end: _End) -> SignalSender | None:
    """Who sent the signal that ended it, as far as that is known."""
    if end.signal is None:
        return None
    if verdict is Verdict.OUT_OF_MEMORY:
        return SignalSender.KERNEL
    if end.cause and end.signal in _OUR_SIGNALS:
        return SignalSender.DAEMON
    return SignalSender.CALLER if end.signal in end.signalled else None


def _message(verdict: Verdict, end: _End, evidence: Evidence, cancelled_by: str) -> str:
    match verdict:
        case Verdict.EXITED:
            return "" if end.exit_code == 0 else f"exited with code {end.exit_code}"
        case Verdict.EXCEPTION if end.exception is not None:
            raised = end.exception
            return f"{raised.type}: {raised.message}" if raised.message else raised.type
        case Verdict.TIMEOUT:
            return f"timed out after {evidence.timeout_s:g} seconds"
        case Verdict.IDLE_TIMEOUT:
            return f"timed out after {evidence.idle_timeout_s:g} seconds without output or taken input"
        case Verdict.CANCELLED:
            return f"cancelled by {cancelled_by}" if cancelled_by else "cancelled"
        case Verdict.OUT_OF_MEMORY:
            return "killed by the kernel: the sandbox reached its memory limit"
        case Verdict.OUTPUT_LIMIT:
            return "killed: it wrote more than its output limit"
        case Verdict.DISK_LIMIT:
            return "ended by SIGXFSZ, as the kernel does at the limit for the size of a file"
        case Verdict.PIDS_LIMIT:
            return "killed: the sandbox reached its limit of processes, at which this daemon's policy kills"
        case Verdict.SANDBOX_LOST:
            return "the sandbox was stopped"
        case Verdict.SIGNALED if end.cause == "claims":
            return (
                "killed by the daemon: the program wrote to its interpreter's own socket, so its end could not be known"
            )
        case Verdict.SIGNALED if end.cause == "hoard":
            return f"killed by the daemon: {end.reason}" if end.reason else "killed by the daemon"
        case Verdict.INTERNAL_ERROR if end.cause == "unprepared":
            return f"it was not run, since its process could not be prepared: {end.reason}"
        case Verdict.SIGNALED if end.signal is not None:
            return f"killed by signal {end.signal} ({_signal_name(end.signal)})"
        case _:
            return "the guest could not say how it ended"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"


def _limits(end: _End, evidence: Evidence) -> tuple[LimitHit, ...]:
    hits = (
        LimitHit("memory", evidence.oom_kills, evidence.memory_peak_bytes, evidence.memory_limit_bytes),
        LimitHit("pids", evidence.pids_limit_hits, evidence.pids_peak, evidence.pids_limit),
        LimitHit("disk", end.disks_full),
    )
    return tuple(hit for hit in hits if hit.count > 0)


def _integer(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= 255 else None


def _signal(value: object) -> int | None:
    return value if type(value) is int and 1 <= value <= _SIGNAL_MAX else None


def _signals(value: object) -> frozenset[int]:
    found = value[:_SIGNALS_TOLD_MAX] if isinstance(value, list) else []
    return frozenset(number for number in found if type(number) is int and 1 <= number <= _SIGNAL_MAX)


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < _SECONDS_MAX else 0.0


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _exception(value: object) -> ExceptionInfo | None:
    if not isinstance(value, dict):
        return None
    kind, message = _text(value.get("type"), 256) or "Exception", _text(value.get("message"), 4096)
    return ExceptionInfo(kind, message, _integer(value.get("errno")))


def _text(value: object, most: int) -> str:
    """Text that can be told: no half of a surrogate pair, and not too much of it."""
    return value[:most].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _totals(value: object) -> dict[int, int]:
    found = value if isinstance(value, dict) else {}
    return {channel: _count(found.get(str(channel))) for channel in _CHANNELS if str(channel) in found}


def _usage(value: object) -> ResourceUsage:
    found = value if isinstance(value, dict) else {}
    return ResourceUsage(
        cpu_user_s=_seconds(found.get("cpu_user_s")),
        cpu_system_s=_seconds(found.get("cpu_system_s")),
        memory_peak_bytes=_count(found.get("memory_peak_bytes")),
        io_read_bytes=_count(found.get("io_read_bytes")),
        io_write_bytes=_count(found.get("io_write_bytes")),
    )


def _spent_s(phases: Phases) -> float:
    """How long something of it ran. A guest that says nothing of that is held against the daemon's clock alone."""
    return phases.starting_s + phases.running_s + phases.draining_s or math.inf


def _phases(value: object) -> Phases:
    found = value if isinstance(value, dict) else {}
    names = ("queued_s", "starting_s", "running_s", "draining_s")
    return Phases(*(_seconds(found.get(name)) for name in names))
