"""One call in a pool: it waits for a member, runs alone in it, and gets the whole of its answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from enclaved.core import answer_room
from enclaved.core.executions import RUN_OUTPUT_BYTES, Execution, Executions
from enclaved.core.leases import Use
from enclaved.core.lending import Member
from enclaved.core.members import Members
from enclaved.core.record import SandboxRecord
from enclaved.errors import (
    EnclaveError,
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    SandboxLost,
    SandboxNotFound,
    ShuttingDown,
    WrongState,
)
from enclaved.model import (
    CHANNEL_NAMES,
    STDERR,
    STDOUT,
    Finished,
    LeaseKind,
    MemberState,
    Notice,
    NoticeKind,
    Output,
    RunResult,
    ToolCall,
)

BY_LEAVING = "its caller, who left"


def check_wait(wait_timeout_s: float) -> None:
    """Raises `InvalidRequest` for what is no time to wait."""
    if not math.isfinite(wait_timeout_s) or wait_timeout_s < 0:
        raise InvalidRequest.of("wait_timeout_s", f"must be a finite number, 0 or more, is {wait_timeout_s}")


async def run_in(
    members: Members,
    executions: Executions,
    call: ToolCall,
    wait_s: float,
    may_use: Callable[[SandboxRecord], None],
) -> tuple[str, RunResult]:
    """Runs a tool in the next free member; returns the member's id and the whole result. See `Pools.run`.

    ``may_use`` raises `PolicyDenied` for a member that the caller could not have.
    """
    if call.sandbox_id:
        raise InvalidRequest.of("spec.sandbox_id", "must be empty: the pool chooses the sandbox")
    check_wait(wait_s)
    _check(members, executions, call)
    began = asyncio.get_running_loop().time()
    while True:
        if (again := await _again(members, executions, call)) is not None:
            return again
        waited_s = asyncio.get_running_loop().time() - began
        member = await members.lease(max(0.0, wait_s - waited_s))
        if (
            members.answers.has(call.execution_id) or _known(members, executions, call) is not None
        ):  # it came again while it waited
            members.give_back(member)
            continue
        check_lent(members, member, may_use)
        use = members.begin_use(LeaseKind.RUN, asyncio.get_running_loop().time() - began, call.tool)
        execution = await _open(members, executions, member, call)
        if execution is not None:
            return await _finish(members, member, execution, use)


def check_lent(members: Members, member: Member, may_use: Callable[[SandboxRecord], None]) -> None:
    """Looks whether who got a member may have it, and gives it back if not. Raises `PolicyDenied`."""
    try:
        if member.record is not None:
            may_use(member.record)
    except EnclaveError:
        members.give_back(member)
        raise


def _check(members: Members, executions: Executions, call: ToolCall) -> None:
    """Refuses a call that makes no sense before it waits. Members are all alike, so any of them tells."""
    for member in members.slots:
        if member.record is not None and member.state in (MemberState.IDLE, MemberState.BUSY):
            executions.check(call, member.record)
            return


async def _again(members: Members, executions: Executions, call: ToolCall) -> tuple[str, RunResult] | None:
    """The answer of this call, if it came before; what its member is by now does not matter."""
    if members.answers.is_whole(call.execution_id):
        return await members.answers.get(call.execution_id)
    if (known := _known(members, executions, call)) is not None:
        return known.record.id, await gather(known)
    if members.answers.has(call.execution_id):
        return await members.answers.get(call.execution_id)
    return None


def _known(members: Members, executions: Executions, call: ToolCall) -> Execution | None:
    """The execution that this call has started before, if its id says so."""
    if not call.execution_id:
        return None
    try:
        known = executions.get(call.execution_id)
    except ExecutionNotFound:
        return None
    return known if any(member.record is known.record for member in members.slots) else None


async def _open(members: Members, executions: Executions, member: Member, call: ToolCall) -> Execution | None:
    """Starts the call; ``None`` if the member was lost in this moment, and another one should be tried."""
    try:
        return await executions.open(replace(call, sandbox_id=member.sandbox_id))
    except (WrongState, SandboxNotFound, SandboxLost, GuestUnavailable):
        members.give_back_unfit(member)
        return None
    except BaseException:
        members.give_back(member)
        raise


async def _finish(members: Members, member: Member, execution: Execution, use: Use) -> tuple[str, RunResult]:
    sandbox_id = member.sandbox_id
    use.execution_id, use.tool = execution.id, execution.tool
    result: RunResult | None = None
    try:
        result = await gather(execution)
        return sandbox_id, result
    finally:
        # A daemon that stops may leave its sandboxes to the next one, and then the run with its result, too.
        if not isinstance(members.closed, ShuttingDown):
            execution.cancel(BY_LEAVING)
            members.answers.keep(execution, result)
        use.verdict = execution.finished.verdict if execution.finished is not None else None
        members.give_back(member, use)


async def gather(execution: Execution) -> RunResult:
    """Takes the whole of an execution, however much it writes, and keeps what fits into one answer."""
    result = await execution.collect()
    if result.finished is not None:
        return result
    outputs = {STDOUT: bytearray(result.stdout), STDERR: bytearray(result.stderr)}
    dropped = {STDOUT: 0, STDERR: 0}
    notices = [*result.notices]
    finished: Finished | None = None
    async with execution.attach({channel: len(kept) for channel, kept in outputs.items()}) as events:
        async for event in events:
            match event:
                case Output():
                    kept = outputs[event.channel]
                    room = RUN_OUTPUT_BYTES - len(kept) if answer_room.take(len(event.data)) else 0
                    kept += event.data[:room]
                    dropped[event.channel] += len(event.data[room:])
                case Notice():
                    notices.append(event)
                case Finished():
                    finished = event
    for channel, count in dropped.items():
        if count:
            text = f"{count} bytes of {CHANNEL_NAMES[channel]} are left out: an answer holds {RUN_OUTPUT_BYTES}"
            notices.append(Notice(NoticeKind.GAP, text, channel, len(outputs[channel]), count))
    return RunResult(execution.id, bytes(outputs[STDOUT]), bytes(outputs[STDERR]), tuple(notices), finished)
