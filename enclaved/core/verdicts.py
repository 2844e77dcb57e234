"""From what the guest saw and the control group counted to the verdict: one pure function.

Nothing is guessed from an exit code: 124 and 137 are exit codes like any other. A signal, a limit or our own hand is
evidence of its own.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enclaved.model import ExceptionInfo, Finished, LimitHit, Phases, ResourceUsage, Verdict

_SECONDS_MAX = 1e12

_CAUSES = {
    "timeout": Verdict.TIMEOUT,
    "cancel": Verdict.CANCELLED,
    "output_limit": Verdict.OUTPUT_LIMIT,
    "park": Verdict.SANDBOX_LOST,
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the daemon knows beside the guest's report."""

    timeout_s: float
    oom_kills: int = 0
    """Kills by the kernel for lack of memory in the sandbox since the execution before this one ended."""
    pids_limit_hits: int = 0
    alone: bool = True
    """Whether no other execution ran in the sandbox at the same time."""
    cancelled_by: str = ""


def conclude(report: Mapping[str, Any], evidence: Evidence) -> Finished:
    """Decides how an execution ended. The report is hostile input: fields of the wrong type count as absent."""
    exit_code, signal = _integer(report.get("exit_code")), _integer(report.get("signal"))
    # A process that ended with 0 has not raised, whatever the program in it claims.
    exception = _exception(report.get("exception")) if exit_code != 0 else None
    verdict = _verdict(report, exit_code, signal, exception, evidence)
    preserved = report.get("state_preserved")
    return Finished(
        verdict=verdict,
        exit_code=exit_code,
        signal=signal,
        message=_message(verdict, exit_code, signal, exception, evidence),
        attested=report.get("attested") is True,
        exception=exception,
        bytes_total=_totals(report.get("bytes_total")),
        usage=_usage(report.get("usage")),
        phases=_phases(report.get("phases")),
        state_preserved=preserved if isinstance(preserved, bool) else None,
        limits_hit=_limits(evidence),
        timeout_s=evidence.timeout_s,
    )


def lost(why: str, timeout_s: float) -> Finished:
    """Says that the sandbox went away under an execution."""
    return Finished(verdict=Verdict.SANDBOX_LOST, message=why, attested=True, timeout_s=timeout_s)


def _verdict(
    report: Mapping[str, Any],
    exit_code: int | None,
    signal: int | None,
    exception: ExceptionInfo | None,
    evidence: Evidence,
) -> Verdict:
    cause = report.get("cause")
    if isinstance(cause, str) and cause in _CAUSES:
        return _CAUSES[cause]
    if signal is not None:
        if signal == signals.SIGKILL and evidence.oom_kills and evidence.alone:
            return Verdict.OUT_OF_MEMORY
        return Verdict.DISK_LIMIT if signal == signals.SIGXFSZ else Verdict.SIGNALED
    if exception is not None:
        return Verdict.EXCEPTION
    return Verdict.EXITED if exit_code is not None else Verdict.INTERNAL_ERROR


def _message(
    verdict: Verdict,
    exit_code: int | None,
    signal: int | None,
    exception: ExceptionInfo | None,
    evidence: Evidence,
) -> str:
    match verdict:
        case Verdict.EXITED:
            return "" if exit_code == 0 else f"exited with code {exit_code}"
        case Verdict.EXCEPTION if exception is not None:
            return f"{exception.type}: {exception.message}" if exception.message else exception.type
        case Verdict.TIMEOUT:
            return f"timed out after {evidence.timeout_s:g} seconds"
        case Verdict.CANCELLED:
            return f"cancelled by {evidence.cancelled_by}" if evidence.cancelled_by else "cancelled"
        case Verdict.OUT_OF_MEMORY:
            return "killed by the kernel: the sandbox reached its memory limit"
        case Verdict.OUTPUT_LIMIT:
            return "killed: it wrote more than its output limit"
        case Verdict.DISK_LIMIT:
            return "killed by the kernel: it reached the limit for the size of a file"
        case Verdict.SANDBOX_LOST:
            return "the sandbox was stopped"
        case Verdict.SIGNALED if signal is not None:
            return f"killed by signal {signal} ({_signal_name(signal)})"
        case _:
            return "the guest could not say how it ended"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"


def _limits(evidence: Evidence) -> tuple[LimitHit, ...]:
    counted = (("memory", evidence.oom_kills), ("pids", evidence.pids_limit_hits))
    return tuple(LimitHit(name, count) for name, count in counted if count > 0)


def _integer(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= 255 else None


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
    return {channel: _count(found.get(str(channel))) for channel in (1, 2)}


def _usage(value: object) -> ResourceUsage:
    found = value if isinstance(value, dict) else {}
    return ResourceUsage(
        cpu_user_s=_seconds(found.get("cpu_user_s")),
        cpu_system_s=_seconds(found.get("cpu_system_s")),
        memory_peak_bytes=_count(found.get("memory_peak_bytes")),
        io_read_bytes=_count(found.get("io_read_bytes")),
        io_write_bytes=_count(found.get("io_write_bytes")),
    )


def _phases(value: object) -> Phases:
    found = value if isinstance(value, dict) else {}
    names = ("queued_s", "starting_s", "running_s", "draining_s")
    return Phases(*(_seconds(found.get(name)) for name in names))
