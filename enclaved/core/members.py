"""The members of one pool: who is free, who waits, and how a member becomes as new after a call."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from enclaved.core.background import Background
from enclaved.core.executions import Executions
from enclaved.core.record import SandboxRecord
from enclaved.core.reset import ResetFailed, reset
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import EnclaveError, LimitReached, PoolBusy, SandboxExists, SandboxNotFound, ShuttingDown
from enclaved.metrics import Metrics
from enclaved.model import MemberState, ResetOutcome, SandboxRequest, SandboxState

log = logging.getLogger(__name__)

CREATES_AT_ONCE = 4
REMOVALS_AT_ONCE = 8
WAITERS_MAX = 1000
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0


@dataclass(slots=True, eq=False)
class Member:
    """One slot of a pool and the sandbox that fills it now."""

    record: SandboxRecord
    state: MemberState = MemberState.BUSY
    clean_at: int = 0
    """`SandboxRecord.executions_started` when it was last known to be as new."""

    @property
    def sandbox_id(self) -> str:
        """The id of its sandbox."""
        return self.record.id


class Members:
    """All members of one pool. Callers are served first come, first served."""

    def __init__(
        self,
        pool_id: str,
        request: SandboxRequest,
        labels: Mapping[str, str],
        *,
        sandboxes: Sandboxes,
        executions: Executions,
        background: Background,
        metrics: Metrics,
    ) -> None:
        self.pool_id = pool_id
        self.slots: list[Member] = []
        self.closed: EnclaveError | None = None
        """Why nobody gets a member any more."""
        self._request, self._labels = request, dict(labels)
        self._sandboxes, self._executions = sandboxes, executions
        self._background, self._metrics = background, metrics
        self._idle: deque[Member] = deque()
        self._waiters: deque[asyncio.Future[Member]] = deque()
        self._recycling: set[asyncio.Task[None]] = set()
        self._trouble = ""

    # -- beginning and end

    async def make(self, size: int) -> None:
        """Makes all members, a few at a time. Whoever fails or leaves before the end takes back what was made."""
        gate = asyncio.Semaphore(CREATES_AT_ONCE)

        async def make_one() -> Member:
            async with gate:
                sandbox = await self._sandboxes.create(self._request, labels=self._labels, pool_id=self.pool_id)
                return Member(self._sandboxes.record(sandbox.id))

        making = [asyncio.create_task(make_one(), name=f"make {self.pool_id}") for _ in range(size)]
        try:
            self.slots = await asyncio.gather(*making)
        except BaseException:
            await self._background.finish(self._take_back(making), f"undo pool {self.pool_id}")
            raise
        for member in self.slots:
            self._metrics.pool_member_moved(None, member.state)
            self._offer(member)

    async def _take_back(self, making: list[asyncio.Task[Member]]) -> None:
        for task in making:
            task.cancel()
        await asyncio.wait(making)
        made = [task.result() for task in making if not task.cancelled() and task.exception() is None]
        for error in await self._delete(made):
            log.error("member left behind", extra={"pool_id": self.pool_id, "reason": str(error)})

    def close(self, why: EnclaveError) -> None:
        """Lends no member any more; those who wait hear why. Members stay as they are."""
        if self.closed is not None:
            return
        self.closed = why
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(why)
        for task in self._recycling:
            task.cancel()
        for member in self.slots:
            self._metrics.pool_member_moved(member.state, None)
        self._idle.clear()

    async def remove(self) -> None:
        """Deletes the members of a closed pool. Raises what keeps one from being deleted; can be repeated."""
        if self._recycling:
            await asyncio.wait(self._recycling)
        errors = await self._delete(self.slots)
        if errors:
            raise errors[0]

    async def _delete(self, members: list[Member]) -> list[EnclaveError]:
        gate = asyncio.Semaphore(REMOVALS_AT_ONCE)
        errors: list[EnclaveError] = []

        async def delete(member: Member) -> None:
            async with gate:
                try:
                    if self._is_known(member):
                        await self._sandboxes.delete(member.sandbox_id)
                except SandboxNotFound:
                    pass
                except EnclaveError as error:
                    errors.append(error)

        await asyncio.gather(*(delete(member) for member in members))
        return errors

    # -- lending

    async def lease(self, wait_s: float) -> Member:
        """Waits for a free member, in the order of the calls. Hand it to `give_back` afterwards.

        Raises `PoolBusy` if none was free in time, `LimitReached` if too many wait, and why the pool closed.
        """
        if self.closed is not None:
            raise self.closed
        if not self._waiters:
            while self._idle:
                member = self._idle.popleft()
                if self._is_as_new(member):
                    self._move(member, MemberState.BUSY)
                    return member
                self._recycle_later(member)
        if wait_s == 0:
            raise self._busy(wait_s)
        if len(self._waiters) >= WAITERS_MAX:
            text = f"{WAITERS_MAX} calls wait for members of pool {self.pool_id!r} already; try again later"
            raise LimitReached(f"pool/{self.pool_id}", "waiters", text)
        return await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> Member:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Member] = loop.create_future()
        self._waiters.append(waiter)
        self._metrics.pool_waiting(1)
        timer = loop.call_later(wait_s, self._expire, waiter, wait_s, context=contextvars.Context())
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been handed a member in the same moment.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result(), used=False)
            raise
        finally:
            timer.cancel()
            self._metrics.pool_waiting(-1)
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _expire(self, waiter: asyncio.Future[Member], wait_s: float) -> None:
        if not waiter.done():
            self._waiters.remove(waiter)
            waiter.set_exception(self._busy(wait_s))

    def _busy(self, wait_s: float) -> PoolBusy:
        states = [member.state for member in self.slots]
        busy = states.count(MemberState.BUSY)
        text = (
            f"no member of pool {self.pool_id!r} was free within {wait_s:g} s: {busy} of {len(states)} run calls, "
            f"{len(states) - busy} are being made ready"
        )
        return PoolBusy(self.pool_id, f"{text} ({self._trouble})" if self._trouble else text)

    def give_back(self, member: Member, *, used: bool) -> None:
        """Takes a member back. One that was used is reset before anybody else gets it."""
        if self.closed is not None:
            return
        if used:
            self._recycle_later(member)
        else:
            self._offer(member)

    def _offer(self, member: Member) -> None:
        """Hands a member that is as new to whoever waits longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._move(member, MemberState.BUSY)
                waiter.set_result(member)
                return
        self._move(member, MemberState.IDLE)
        self._idle.append(member)

    def _move(self, member: Member, state: MemberState) -> None:
        self._metrics.pool_member_moved(member.state, state)
        member.state = state

    def _is_known(self, member: Member) -> bool:
        """Whether its sandbox is still there, and not another one of the same id."""
        try:
            return self._sandboxes.record(member.sandbox_id) is member.record
        except SandboxNotFound:
            return False

    def _is_as_new(self, member: Member) -> bool:
        """Whether it still runs, and nobody ran anything in it past the pool."""
        runs = self._is_known(member) and member.record.state is SandboxState.RUNNING
        return runs and member.record.executions_started == member.clean_at

    # -- making as new

    def _recycle_later(self, member: Member) -> None:
        self._move(member, MemberState.RESETTING)
        task = self._background.spawn(self._recycle(member), f"reset {member.sandbox_id}")
        self._recycling.add(task)
        task.add_done_callback(self._recycling.discard)

    async def _recycle(self, member: Member) -> None:
        """Resets a member, or fills its slot with a new sandbox of the same id; then others may have it."""
        fields = {"pool_id": self.pool_id, "sandbox_id": member.sandbox_id}
        try:
            proof = await reset(member.record, self._executions)
        except ResetFailed as error:
            log.warning("member is replaced", extra={**fields, "reason": str(error)})
            if not await self._replace(member):
                return
        else:
            self._metrics.pool_reset(ResetOutcome.CLEAN)
            counts = {"processes_killed": proof.processes_killed, "files_removed": proof.files_removed}
            log.debug("member reset", extra={**fields, **counts, "left": 0})
        member.clean_at = member.record.executions_started
        if self.closed is None:
            self._offer(member)

    async def _replace(self, member: Member) -> bool:
        """Tries until there is a new sandbox (True) or the daemon stops (False)."""
        self._move(member, MemberState.REPLACING)
        sandbox_id, delay_s = member.sandbox_id, RETRY_FIRST_S
        while True:
            try:
                for error in await self._delete([member]):
                    raise error
                sandbox = await self._sandboxes.create(
                    self._request, sandbox_id=sandbox_id, labels=self._labels, pool_id=self.pool_id
                )
            except SandboxExists:  # somebody else took the id meanwhile
                sandbox_id = ""
            except ShuttingDown:
                return False
            except EnclaveError as error:
                self._metrics.pool_reset(ResetOutcome.FAILED)
                self._trouble = f"a member could not be replaced: {error}"
                log.error("member not replaced", extra={"pool_id": self.pool_id, "reason": str(error)})
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MOST_S)
            else:
                member.record = self._sandboxes.record(sandbox.id)
                self._metrics.pool_reset(ResetOutcome.REPLACED)
                self._trouble = ""
                return True
