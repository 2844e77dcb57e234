"""What is written down of an execution that begins."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from enclaved.agent.handle import RunOptions
from enclaved.core.execution_rows import ExecutionRow
from enclaved.core.record import SandboxRecord
from enclaved.model import OnAwaitingInput, ToolCall

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def number_at(moment: datetime) -> int:
    """The number of an execution that was created at a moment: microseconds."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def new_row(
    record: SandboxRecord,
    number: int,
    tool: str,
    context: str | None,
    options: RunOptions,
    call: ToolCall | None,
    *,
    alone: bool,
) -> ExecutionRow:
    """What must be written down of an execution. ``call=None``: it is the daemon's own."""
    counted = record.counted
    return ExecutionRow(
        id=(call.execution_id if call is not None else "") or secrets.token_hex(8),
        sandbox_id=record.id,
        tool=tool,
        context=context or "",
        created_at=EPOCH + timedelta(microseconds=number),
        timeout_s=options.timeout_s,
        output_limit_bytes=options.output_limit_bytes,
        idle_timeout_s=options.idle_timeout_s,
        stdin=options.stdin,
        merge_stderr=options.merge_stderr,
        terminal=options.terminal,
        keep_last_bytes=options.keep_last_bytes,
        detach=call.detach if call is not None else False,
        detach_grace_s=call.detach_grace_s if call is not None else 60.0,
        on_awaiting_input=call.on_awaiting_input if call is not None else OnAwaitingInput.NOTICE,
        chosen=call is not None and bool(call.execution_id),
        oom_kills_before=counted.oom_kills if counted is not None else None,
        pids_limit_hits_before=counted.pids_limit_hits if counted is not None else None,
        alone=alone,
    )
