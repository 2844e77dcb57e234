"""Words the end of an execution as the documented results, with the texts that users parse."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import Any

from ms_enclave._convert import plain_number
from ms_enclave._model import (
    CommandResult,
    ExceptionInfo,
    ExecutionStatus,
    Finished,
    Notice,
    NoticeKind,
    Phases,
    ResourceUsage,
    ToolResult,
    Verdict,
)

_STATUS = {
    Verdict.TIMEOUT: ExecutionStatus.TIMEOUT,
    Verdict.IDLE_TIMEOUT: ExecutionStatus.TIMEOUT,
    Verdict.CANCELLED: ExecutionStatus.CANCELLED,
}

_REASONS = {
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
"""Reasons for which the daemon left no text of its own."""


_OF_SAMPLES = ("memory_bytes", "pids")

_NOTHING_RAN = {
    "verdict": None,
    "exit_code": None,
    "signal": None,
    "stderr": "",
    "truncated": False,
    "execution_id": None,
    "phases": None,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The whole of one execution."""

    execution_id: str
    stdout: bytes
    stderr: bytes
    notices: tuple[Notice, ...]
    finished: Finished


def tool_result(tool_name: str, outcome: Outcome) -> ToolResult:
    """Words an outcome as the result of a tool."""
    finished = outcome.finished
    stderr = _text(outcome.stderr)
    status = _status(finished)
    phases = finished.phases
    return ToolResult(
        tool_name=tool_name,
        status=status,
        output=_text(outcome.stdout),
        error=_error(finished, status, stderr),
        metadata=_metadata(outcome, stderr),
        execution_time=phases.starting_s + phases.running_s + phases.draining_s,
    )


def refused_result(tool_name: str, reason: str) -> ToolResult:
    """Words the refusal of well-formed nonsense, such as to run no code: nothing was executed."""
    return ToolResult(
        tool_name=tool_name,
        status=ExecutionStatus.ERROR,
        output="",
        error=reason,
        metadata=dict(_NOTHING_RAN),
        execution_time=0.0,
    )


def command_result(command: str | list[str], result: ToolResult) -> CommandResult:
    """Words the result of running a command as the documented ``CommandResult``."""
    metadata = result.metadata
    stderr = metadata.get("stderr") or ""
    if not stderr and not result.success:
        stderr = result.error or ""
    return CommandResult(
        command=command,
        status=result.status,
        exit_code=_exit_code(result.status, metadata.get("exit_code"), metadata.get("signal")),
        stdout=result.output,
        stderr=stderr,
        execution_time=result.execution_time,
        timestamp=result.timestamp,
    )


def _status(finished: Finished) -> ExecutionStatus:
    if finished.verdict is Verdict.EXITED and not finished.exit_code:
        return ExecutionStatus.SUCCESS
    return _STATUS.get(finished.verdict, ExecutionStatus.ERROR)


def _error(finished: Finished, status: ExecutionStatus, stderr: str) -> str | None:
    """Says what went wrong: what the program said, then why it ended, unless the program said that itself.

    A timeout is the one text alone: users compare it, and what the interrupted program says is its own traceback.
    """
    if status is ExecutionStatus.SUCCESS:
        return stderr or None
    words = ending(finished)
    if finished.verdict is Verdict.TIMEOUT:
        return words
    if finished.verdict is Verdict.EXCEPTION and stderr:
        return stderr
    gap = "" if not stderr or stderr.endswith("\n") else "\n"
    return f"{stderr}{gap}{words}"


def ending(finished: Finished) -> str:
    """Says in one sentence why an execution ended."""
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


def _exit_code(status: ExecutionStatus, exit_code: int | None, signal: int | None) -> int:
    if status in (ExecutionStatus.TIMEOUT, ExecutionStatus.CANCELLED):
        return -1
    if exit_code is not None:
        return exit_code
    return -1 if signal is None else 128 + signal


def _metadata(outcome: Outcome, stderr: str) -> dict[str, Any]:
    finished = outcome.finished
    gaps = any(notice.kind is NoticeKind.GAP for notice in outcome.notices)
    found: dict[str, Any] = {
        "verdict": finished.verdict.value,
        "exit_code": finished.exit_code,
        "signal": finished.signal,
        "stderr": stderr,
        "truncated": gaps or finished.verdict is Verdict.OUTPUT_LIMIT,
        "execution_id": outcome.execution_id,
        "phases": _values(finished.phases),
        "usage": usage_values(finished.usage),
        "attested": finished.attested,
    }
    if finished.state_preserved is not None:
        found["state_preserved"] = finished.state_preserved
    if finished.limits_hit:
        found["limits_hit"] = dict(finished.limits_hit)
    if finished.message:
        found["message"] = finished.message
    if finished.exception is not None:
        found["exception"] = _values(finished.exception)
    if outcome.notices:
        found["notices"] = [notice.message for notice in outcome.notices]
    return found


def usage_values(usage: ResourceUsage) -> dict[str, Any]:
    """Returns what an execution used as a whole, without the fields that only samples have."""
    return {name: value for name, value in _values(usage).items() if name not in _OF_SAMPLES}


def _values(record: Phases | ResourceUsage | ExceptionInfo) -> dict[str, Any]:
    """Returns the fields of a flat record; ``dataclasses.asdict`` is several times slower, and this is every call."""
    return {name: getattr(record, name) for name in type(record).__slots__}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
