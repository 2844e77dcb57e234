"""Pools: sandboxes kept ready for calls that need none of their own. docs/pools.md tells what callers may rely on."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from enclaved.core.background import Background
from enclaved.core.executions import RUN_OUTPUT_BYTES, Execution, Executions
from enclaved.core.members import Member, Members
from enclaved.core.policy import check_id, check_labels
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import (
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    PoolNotFound,
    SandboxLost,
    SandboxNotFound,
    ShuttingDown,
    WrongState,
)
from enclaved.metrics import Metrics
from enclaved.model import (
    CHANNEL_NAMES,
    EMPTY,
    STDERR,
    STDOUT,
    Finished,
    MemberState,
    Notice,
    NoticeKind,
    Output,
    PoolInfo,
    RunResult,
    SandboxRequest,
    ToolCall,
)

log = logging.getLogger(__name__)

SIZE_MAX = 100
WAIT_DEFAULT_S = 60.0


@dataclass(slots=True, eq=False)
class _Pool:
    members: Members
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once all members were made, or what was made of them is gone again."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever deletes it."""

    @property
    def info(self) -> PoolInfo:
        return PoolInfo(self.members.pool_id, tuple(member.sandbox_id for member in self.members.slots))


class Pools:
    """All pools of this daemon."""

    def __init__(
        self, *, sandboxes: Sandboxes, executions: Executions, background: Background, metrics: Metrics
    ) -> None:
        self._sandboxes, self._executions = sandboxes, executions
        self._background, self._metrics = background, metrics
        self._pools: dict[str, _Pool] = {}
        self._closing = False

    async def initialize(
        self, size: int, request: SandboxRequest, *, pool_id: str = "", labels: Mapping[str, str] = EMPTY
    ) -> PoolInfo:
        """Makes a pool of 1 to 100 members and returns when all run; one of this id that exists is left as it is.

        All or nothing: if a member cannot be made, or the caller leaves before the end, those that were made are
        removed. Raises `InvalidRequest`, `PolicyDenied` (more members than the daemon may have sandboxes),
        `LimitReached`, and what `Sandboxes.create` raises.
        """
        if not 1 <= size <= SIZE_MAX:
            raise InvalidRequest.of("size", f"must be from 1 to {SIZE_MAX}, is {size}")
        if pool_id:
            check_id(pool_id, "pool_id")
        check_labels(labels)
        while (known := self._pools.get(pool_id)) is not None:
            await known.settled.wait()
            if self._pools.get(pool_id) is known:
                if known.members.closed is None:
                    return known.info
                await self.delete(pool_id)  # an earlier try failed
        if self._closing:
            raise ShuttingDown
        self._sandboxes.check_room(size, "size")
        pool_id = pool_id or self._new_id()
        members = Members(
            pool_id,
            request,
            labels,
            sandboxes=self._sandboxes,
            executions=self._executions,
            background=self._background,
            metrics=self._metrics,
        )
        pool = self._pools[pool_id] = _Pool(members)
        try:
            await members.make(size)
        except BaseException:
            del self._pools[pool_id]
            raise
        finally:
            pool.settled.set()
        log.info("pool made", extra={"pool_id": pool_id, "size": size})
        return pool.info

    def _new_id(self) -> str:
        while (pool_id := secrets.token_hex(6)) in self._pools:
            pass
        return pool_id

    def _made(self, pool_id: str) -> _Pool:
        pool = self._pools.get(pool_id)
        if pool is None or not pool.settled.is_set() or isinstance(pool.members.closed, PoolNotFound):
            raise PoolNotFound(pool_id[:64])
        return pool

    async def run(self, pool_id: str, call: ToolCall, wait_timeout_s: float = WAIT_DEFAULT_S) -> tuple[str, RunResult]:
        """Runs a tool in the next free member; returns the member's id and the whole result.

        ``call.sandbox_id`` is empty. Callers are served first come, first served; ``wait_timeout_s`` 0 does not wait.
        The result is complete: output beyond 1 MiB of a channel is dropped, with a `gap` notice. A caller that leaves
        ends its run. Raises `PoolNotFound`, `PoolBusy`, `InvalidRequest`, and what `Executions.open` raises.
        """
        if call.sandbox_id:
            raise InvalidRequest.of("spec.sandbox_id", "must be empty: the pool chooses the sandbox")
        if not math.isfinite(wait_timeout_s) or wait_timeout_s < 0:
            raise InvalidRequest.of("wait_timeout_s", f"must be a finite number, 0 or more, is {wait_timeout_s}")
        members = self._made(pool_id).members
        self._check(members, call)
        deadline = asyncio.get_running_loop().time() + wait_timeout_s
        while True:
            if (known := self._known(members, call)) is not None:
                return known.record.id, await _gather(known)
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            member = await members.lease(left_s)
            if self._known(members, call) is not None:  # it came again while it waited
                members.give_back(member, used=False)
                continue
            execution = await self._open(members, member, call)
            if execution is not None:
                return await self._finish(members, member, execution)

    def _check(self, members: Members, call: ToolCall) -> None:
        """Refuses a call that makes no sense before it waits. Members are all alike, so any of them tells."""
        for member in members.slots:
            if member.state in (MemberState.IDLE, MemberState.BUSY):
                self._executions.check(call, member.record)
                return

    def _known(self, members: Members, call: ToolCall) -> Execution | None:
        """The execution that this call has started before, if its id says so."""
        if not call.execution_id:
            return None
        try:
            known = self._executions.get(call.execution_id)
        except ExecutionNotFound:
            return None
        return known if any(member.sandbox_id == known.record.id for member in members.slots) else None

    async def _open(self, members: Members, member: Member, call: ToolCall) -> Execution | None:
        """Starts the call; ``None`` if the member was lost in this moment, and another one should be tried."""
        try:
            return await self._executions.open(replace(call, sandbox_id=member.sandbox_id))
        except (WrongState, SandboxNotFound, SandboxLost, GuestUnavailable):
            members.give_back(member, used=True)
            return None
        except BaseException:
            members.give_back(member, used=False)
            raise

    @staticmethod
    async def _finish(members: Members, member: Member, execution: Execution) -> tuple[str, RunResult]:
        try:
            return member.sandbox_id, await _gather(execution)
        finally:
            execution.cancel("its caller, who left")
            members.give_back(member, used=True)

    async def delete(self, pool_id: str) -> None:
        """Deletes a pool with its members; calls that run are lost, those that wait hear `PoolNotFound`.

        Raises `PoolNotFound`, `EngineUnavailable` (it can be tried again).
        """
        pool = self._pools.get(pool_id)
        if pool is None:
            raise PoolNotFound(pool_id[:64])
        await pool.settled.wait()
        await self._background.finish(self._delete(pool), f"delete pool {pool_id}")

    async def _delete(self, pool: _Pool) -> None:
        pool_id = pool.members.pool_id
        pool.members.close(PoolNotFound(pool_id))
        async with pool.lock:
            if self._pools.get(pool_id) is not pool:
                raise PoolNotFound(pool_id)
            await pool.members.remove()
            del self._pools[pool_id]
        log.info("pool deleted", extra={"pool_id": pool_id})

    def role(self, sandbox_id: str) -> Literal["idle", "busy"] | None:
        """Whether a sandbox is a member that is free, or one that is not; ``None`` if it is in no pool."""
        for pool in self._pools.values():
            for member in pool.members.slots:
                if member.sandbox_id == sandbox_id:
                    return "idle" if member.state is MemberState.IDLE else "busy"
        return None

    def stats(self) -> Mapping[str, int]:
        """The sizes of the pools, by their ids."""
        return {pool_id: len(pool.members.slots) for pool_id, pool in self._pools.items() if pool.settled.is_set()}

    def close(self) -> None:
        """Lends no member and makes no pool any more. `Sandboxes.close` removes the members."""
        self._closing = True
        for pool in self._pools.values():
            pool.members.close(ShuttingDown())


async def _gather(execution: Execution) -> RunResult:
    """Follows an execution to its end, however much it writes, and keeps what fits into one answer."""
    outputs = {STDOUT: bytearray(), STDERR: bytearray()}
    dropped = {STDOUT: 0, STDERR: 0}
    notices: list[Notice] = []
    finished: Finished | None = None
    async with execution.attach() as events:
        async for event in events:
            match event:
                case Output():
                    kept = outputs[event.channel]
                    room = RUN_OUTPUT_BYTES - len(kept)
                    kept += event.data[:room]
                    dropped[event.channel] += len(event.data[room:])
                case Notice():
                    notices.append(event)
                case Finished():
                    finished = event
    for channel, count in dropped.items():
        if count:
            text = f"{count} bytes of {CHANNEL_NAMES[channel]} are left out: an answer holds {RUN_OUTPUT_BYTES}"
            notices.append(Notice(NoticeKind.GAP, text, channel, RUN_OUTPUT_BYTES, count))
    return RunResult(execution.id, bytes(outputs[STDOUT]), bytes(outputs[STDERR]), tuple(notices), finished)
