"""Words the end of an execution as the documented result, with the texts that programs parse."""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from enclaved.model import Finished, NoticeKind, RunResult, Verdict

_STATUS: Final[Mapping[Verdict, str]] = MappingProxyType(
    {Verdict.TIMEOUT: "timeout", Verdict.IDLE_TIMEOUT: "timeout", Verdict.CANCELLED: "cancelled"}
)
_REASONS: Final[Mapping[Verdict, str]] = MappingProxyType(
    {
        Verdict.EXCEPTION: "The program raised an exception",
        Verdict.IDLE_TIMEOUT: "Killed because it did nothing for longer than its idle timeout",
        Verdict.CANCELLED: "Cancelled by a caller",
        Verdict.OUT_OF_MEMORY: "Killed because the sandbox reached its memory limit; set a higher memory_limit",
        Verdict.OUTPUT_LIMIT: "Killed because it wrote more than its output limit",
        Verdict.DISK_LIMIT: "Killed because it reached a limit on files or disk space",
        Verdict.PIDS_LIMIT: "Killed because it reached the limit on processes",
        Verdict.SANDBOX_LOST: "The sandbox died while this ran",
        Verdict.INTERNAL_ERROR: "The sandbox service failed; this says nothing about the program",
    }
)
"""Reasons for which nothing else left a text."""


def tool_result(tool_name: str, result: RunResult, finished: Finished, *, truncated: bool = False) -> dict[str, Any]:
    """Words the whole of one execution. ``truncated``: some of its output is not here."""
    stderr = _text(result.stderr)
    status = _status(finished)
    phases = finished.phases
    return _result(
        tool_name,
        status,
        output=_text(result.stdout),
        error=_error(finished, status, stderr),
        metadata=_metadata(result, finished, stderr, truncated),
        seconds=phases.starting_s + phases.running_s + phases.draining_s,
    )


def refused_result(tool_name: str, reason: str) -> dict[str, Any]:
    """Words the refusal of well-formed nonsense, such as to run no code: nothing was executed."""
    metadata = {
        "verdict": None,
        "exit_code": None,
        "signal": None,
        "stderr": "",
        "truncated": False,
        "execution_id": None,
        "phases": None,
    }
    return _result(tool_name, "error", output="", error=reason, metadata=metadata, seconds=0.0)


def plain_number(value: float) -> int | float:
    """Returns a whole number as an int, so that it prints as people write it."""
    return int(value) if value == int(value) else value


def _result(
    tool_name: str, status: str, *, output: str, error: str | None, metadata: dict[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "status": status,
        "execution_time": seconds,
        "timestamp": datetime.now().isoformat(),  # local and naive, as documented
        "tool_name": tool_name,
        "output": output,
        "metadata": metadata,
        "error": error,
    }


def _status(finished: Finished) -> str:
    if finished.verdict is Verdict.EXITED and not finished.exit_code:
        return "success"
    return _STATUS.get(finished.verdict, "error")


def _error(finished: Finished, status: str, stderr: str) -> str | None:
    """Says what went wrong: what the program said, then why it ended, unless the program said that itself.

    A timeout is the one text alone: programs compare it, and what the interrupted one says is its own traceback.
    """
    if status == "success":
        return stderr or None
    reason = _reason(finished)
    if finished.verdict is Verdict.TIMEOUT:
        return reason
    if finished.verdict is Verdict.EXCEPTION and stderr:
        return stderr
    gap = "" if not stderr or stderr.endswith("\n") else "\n"
    return f"{stderr}{gap}{reason}"


def _reason(finished: Finished) -> str:
    match finished.verdict:
        case Verdict.EXITED:
            return f"Command failed with exit code {finished.exit_code}"
        case Verdict.TIMEOUT:
            return f"Command timed out after {plain_number(finished.timeout_s)} seconds"
        case Verdict.SIGNALED if finished.signal is not None:
            return f"Command failed with exit code {128 + finished.signal} (killed by {_signal_name(finished.signal)})"
        case Verdict.EXCEPTION if finished.exception is not None:
            return f"{finished.exception.type}: {finished.exception.message}"
        case verdict:
            reason = finished.message or _REASONS.get(verdict, "Command failed")
            return f"{reason} (exit code {128 + finished.signal})" if finished.signal is not None else reason


def _signal_name(number: int) -> str:
    try:
        return f"signal {number}, {signals.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


def _metadata(result: RunResult, finished: Finished, stderr: str, truncated: bool) -> dict[str, Any]:
    gaps = any(notice.kind is NoticeKind.GAP for notice in result.notices)
    found: dict[str, Any] = {
        "verdict": finished.verdict.value,
        "exit_code": finished.exit_code,
        "signal": finished.signal,
        "stderr": stderr,
        "truncated": truncated or gaps or finished.verdict is Verdict.OUTPUT_LIMIT,
        "execution_id": result.execution_id,
        "phases": asdict(finished.phases),
        "usage": asdict(finished.usage),
        "attested": finished.attested,
    }
    if finished.state_preserved is not None:
        found["state_preserved"] = finished.state_preserved
    if finished.limits_hit:
        found["limits_hit"] = {hit.limit: hit.count for hit in finished.limits_hit}
    if finished.message:
        found["message"] = finished.message
    if finished.exception is not None:
        found["exception"] = {"type": finished.exception.type, "message": finished.exception.message}
    if result.notices:
        found["notices"] = [notice.message for notice in result.notices]
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
