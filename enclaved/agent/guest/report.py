"""The report of the end of an execution."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .execution import Execution


def usage_of(usage: Any) -> Dict[str, Any]:
    """What a process used, from the kernel's own account (see getrusage(2))."""
    return {
        "cpu_user_s": usage.ru_utime,
        "cpu_system_s": usage.ru_stime,
        "memory_peak_bytes": usage.ru_maxrss * 1024,
        "io_read_bytes": usage.ru_inblock * 512,
        "io_write_bytes": usage.ru_oublock * 512,
    }


def completed(usage: Dict[str, Any], execution: Execution) -> Dict[str, Any]:
    """Adds to what the kernel says of a program what it cannot: bytes through pipes, and processes that were killed.

    Of bytes it knows only those that came from disks or went there. An interpreter's own count is the best there is,
    then the last look of the observer.
    """
    used = execution.used
    result = {name: max(value, getattr(used, name)) for name, value in usage.items()}
    claimed = execution.claim["usage"] if execution.claim is not None else {}
    for name in ("io_read_bytes", "io_write_bytes"):
        result[name] = max(result[name], claimed.get(name, 0))
    return result


def finished_frame(execution: Execution, context_lives: bool) -> Dict[str, Any]:
    """The `finished` frame of an execution that has ended. Where the kernel knows, its word counts, else the claim."""
    times, status, claim, usage = execution.times, execution.status, execution.claim, execution.usage
    exit_code = signal_number = None
    if status is not None:
        if os.WIFSIGNALED(status):
            signal_number = os.WTERMSIG(status)
        else:
            exit_code = os.WEXITSTATUS(status)
    elif claim is not None:
        exit_code = claim["exit_code"]
    if usage is None and claim is not None:
        usage = claim["usage"]
    elif usage is not None and execution.context_name is None:
        usage = completed(usage, execution)
    return {
        "type": "finished",
        "execution": execution.name,
        "exit_code": exit_code,
        "signal": signal_number,
        "cause": execution.cause,
        "reason": execution.reason,
        "attested": status is not None,
        "exception": claim["exception"] if claim is not None else None,
        "state_preserved": context_lives if execution.context_name is not None and execution.starts else None,
        "fresh_context": execution.fresh_context,
        "usage": usage,
        "disks_full": execution.disks_full,
        "signalled": execution.signalled,
        "bytes_total": {str(channel): total for channel, total in execution.journal.end.items()},
        "phases": {
            "queued_s": round(times["starting"] - times["queued"], 6),
            "starting_s": round(times["running"] - times["starting"], 6),
            "running_s": round(times["draining"] - times["running"], 6),
            "draining_s": round(times["ended"] - times["draining"], 6),
        },
    }


def holds_frame(execution: Execution) -> Dict[str, Any]:
    """The `holds` frame of an execution: all that a daemon needs to take it up that has never seen it."""
    first, end = execution.journal.start(), execution.journal.end
    return {
        "type": "holds",
        "execution": execution.name,
        "state": execution.state,
        "stdin_offset": execution.stdin_offset,
        "stdin_ended": execution.stdin_ended,
        "first_offsets": {str(channel): offset for channel, offset in first.items()},
        "end_offsets": {str(channel): offset for channel, offset in end.items()},
    }
