"""Who gets which member of a pool, and when: first come, first served, each with a deadline."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from enclaved.core.crew import Made
from enclaved.core.record import SandboxRecord
from enclaved.core.state import Baseline
from enclaved.errors import EnclaveError, LimitReached, PoolBusy
from enclaved.metrics import Metrics
from enclaved.model import MemberState, SandboxState

WAITERS_MAX: Final = 1000


@dataclass(slots=True, eq=False)
class Member:
    """One slot of a pool and the sandbox that fills it now."""

    slot: int
    record: SandboxRecord | None = None
    """``None``: none has been made for it yet."""
    baseline: Baseline | None = None
    wanted_id: str = ""
    """Id that its first sandbox is to have; empty: any."""
    state: MemberState = MemberState.REPLACING
    since: float = field(default_factory=time.monotonic)
    """Monotonic time since which it is in this state."""
    clean_at: int = 0
    """`SandboxRecord.executions_started` when it was last known to be as new."""
    calls: int = 0
    """Calls that its sandbox has served."""
    is_stale: bool = False
    """Whether its sandbox is not what the pool is to have any more."""
    is_retired: bool = False
    """Whether the pool has no such slot any more."""
    successor: Made | None = None
    """What takes its sandbox's place as soon as that is free."""

    @property
    def sandbox_id(self) -> str:
        """The id of its sandbox, or the one that this is to have."""
        return self.record.id if self.record is not None else self.wanted_id

    @property
    def is_as_new(self) -> bool:
        """Whether its sandbox runs, and nobody ran anything in it past the pool."""
        record = self.record
        if record is None or record.is_forgotten or record.state is not SandboxState.RUNNING:
            return False
        return record.executions_started == self.clean_at


class Lending:
    """Free members, and those who wait for one.

    ``unfit`` is handed a free member that is not as new any more. ``moved`` is told the state that a member enters.
    ``busy`` makes the error for who got none in time.
    """

    def __init__(
        self,
        pool_id: str,
        metrics: Metrics,
        *,
        unfit: Callable[[Member], None],
        moved: Callable[[Member, MemberState], None],
        busy: Callable[[float], PoolBusy],
    ) -> None:
        self._pool_id, self._metrics = pool_id, metrics
        self._unfit, self._moved, self._busy = unfit, moved, busy
        self.idle: deque[Member] = deque()
        self.closed: EnclaveError | None = None
        """Why nobody gets a member any more."""
        self._waiters: deque[asyncio.Future[Member]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def lease(self, wait_s: float) -> Member:
        """Waits for a free member, in the order of the calls.

        Raises `PoolBusy` if none was free in time, `LimitReached` if too many wait, and why the pool closed.
        """
        if self.closed is not None:
            raise self.closed
        if not self._waiters:
            while self.idle:
                member = self.idle.popleft()
                if member.is_as_new:
                    self._moved(member, MemberState.BUSY)
                    return member
                self._unfit(member)
        if wait_s == 0:
            raise self._busy(wait_s)
        if len(self._waiters) >= WAITERS_MAX:
            text = f"{WAITERS_MAX} calls wait for members of pool {self._pool_id!r} already; try again later"
            raise LimitReached(f"pool/{self._pool_id}", "waiters", text)
        return await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> Member:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Member] = loop.create_future()
        self._waiters.append(waiter)
        self._metrics.pools.waiting(1)
        timer = loop.call_later(wait_s, self._expire, waiter, wait_s, context=contextvars.Context())
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been handed a member in the same moment.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.offer(waiter.result())
            raise
        finally:
            timer.cancel()
            self._metrics.pools.waiting(-1)
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _expire(self, waiter: asyncio.Future[Member], wait_s: float) -> None:
        if not waiter.done():
            self._waiters.remove(waiter)
            waiter.set_exception(self._busy(wait_s))

    def offer(self, member: Member) -> None:
        """Hands a member to whoever waits longest, or keeps it; one that is not as new any more is nobody's."""
        if self.closed is not None:
            return
        if not member.is_as_new or member.is_retired:
            self._unfit(member)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._moved(member, MemberState.BUSY)
                waiter.set_result(member)
                return
        self._moved(member, MemberState.IDLE)
        self.idle.append(member)

    def withdraw(self, member: Member) -> bool:
        """Lends a member no more that is free; whether it was."""
        if member not in self.idle:
            return False
        self.idle.remove(member)
        return True

    def close(self, why: EnclaveError) -> None:
        """Lends no member any more; those who wait hear why."""
        if self.closed is not None:
            return
        self.closed = why
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(why)
        self.idle.clear()
