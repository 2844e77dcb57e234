"""The members of one pool: made, lent, made as new after each use, replaced, and no more and no fewer than wanted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from enclaved.core.answers import Answers
from enclaved.core.crew import Crew, Made, PoolParts
from enclaved.core.leases import LeaseBook, Use
from enclaved.core.lending import Lending, Member
from enclaved.core.pool_rejoin import until_free
from enclaved.core.record import SandboxRecord
from enclaved.core.reset import ResetFailed
from enclaved.core.state import MemberRow
from enclaved.errors import EnclaveError, PoolBusy, SandboxExists, ShuttingDown
from enclaved.model import (
    LOCAL,
    Identity,
    LeaseKind,
    LeaseOutcome,
    MemberState,
    PoolCounters,
    PoolMember,
    PoolPlan,
    ResetOutcome,
)

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 30.0


class Members:
    """All members of one pool."""

    def __init__(self, pool_id: str, plan: PoolPlan, parts: PoolParts, owner: Identity = LOCAL) -> None:
        self.pool_id = pool_id
        self.slots: list[Member] = []
        self.counters = PoolCounters()
        self.answers = Answers()
        self.trouble = ""
        """Why members cannot be made at the moment. Set by `_see_trouble`."""
        self.crew = Crew(pool_id, plan, parts, owner)
        self.lending = Lending(pool_id, parts.metrics, unfit=self._unfit, moved=self._move, busy=self._busy)
        self._parts = parts
        self._work: set[asyncio.Task[None]] = set()
        self._book = LeaseBook(pool_id, parts.leases)
        self._in_hand = 0
        self._none_in_hand = asyncio.Event()
        self._none_in_hand.set()

    @property
    def plan(self) -> PoolPlan:
        """What the pool is to be."""
        return self.crew.plan

    @property
    def closed(self) -> EnclaveError | None:
        """Why nobody gets a member any more; ``None`` as long as they do."""
        return self.lending.closed

    # -- beginning and end

    async def make(self) -> None:
        """Makes all members, a few at a time. Whoever fails or leaves before the end takes back what was made."""

        async def make_one() -> Made:
            async with self.crew.turn(paced=False):
                return await self.crew.make()

        making = [asyncio.create_task(make_one(), name=f"make {self.pool_id}") for _ in range(self.plan.size)]
        try:
            made = await asyncio.gather(*making)
        except BaseException:
            await self._parts.background.finish(self._take_back(making), f"undo pool {self.pool_id}")
            raise
        for each in made:
            self._settle(self._add(), each)

    async def _take_back(self, making: list[asyncio.Task[Made]]) -> None:
        for task in making:
            task.cancel()
        await asyncio.wait(making)
        made = [task.result().record for task in making if not task.cancelled() and task.exception() is None]
        for error in await self.crew.remove_all(made):
            log.error("member left behind", extra={"pool_id": self.pool_id, "reason": str(error)})

    def fill(self) -> None:
        """Begins to make what is missing to the size of the plan, unless the pool is closed."""
        while self.closed is None and len(self.slots) < self.plan.size:
            self.spawn(self._replace(self._add()), "fill")

    def adopt(self, member: Member) -> None:
        """Takes up a member of an earlier daemon. It is reset once it is free: nobody knows what it has done."""
        self.slots.append(member)
        self._parts.metrics.pools.member_moved(None, member.state)
        if member.record is None:
            self.spawn(self._replace(member), "fill")
        else:
            self.spawn(self._readmit(member, member.record), f"adopt {member.sandbox_id}")

    async def _readmit(self, member: Member, record: SandboxRecord) -> None:
        await until_free(record, self._parts.executions)
        await self._recycle(member, None)

    def _add(self) -> Member:
        """Adds a slot, under the first number that is free."""
        taken = {member.slot for member in self.slots}
        member = Member(next(number for number in range(len(taken) + 1) if number not in taken))
        self.slots.append(member)
        self.slots.sort(key=lambda each: each.slot)
        if self.closed is None:
            self._parts.metrics.pools.member_moved(None, member.state)
        return member

    def close(self, why: EnclaveError) -> None:
        """Lends no member any more; those who wait hear why. Members stay as they are."""
        if self.closed is not None:
            return
        self.lending.close(why)
        self._see_trouble("")
        for task in self._work:
            task.cancel()
        for member in self.slots:
            self._parts.metrics.pools.member_moved(member.state, None)

    async def remove(self) -> None:
        """Deletes the members of a closed pool. Raises what keeps one from being deleted; can be repeated."""
        if self._work:
            await asyncio.wait(self._work)
        await self._none_in_hand.wait()
        records = [member.record for member in self.slots if member.record is not None]
        records += [member.successor.record for member in self.slots if member.successor is not None]
        errors = await self.crew.remove_all(records)
        if errors:
            raise errors[0]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Does something in the background, until the pool closes."""
        task = self._parts.background.spawn(work, f"pool {self.pool_id}: {name}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # -- lending

    async def lease(self, wait_s: float) -> Member:
        """Waits for a free member; see `Lending.lease`. Hand it to `give_back` or `part_with` afterwards."""
        try:
            return await self.lending.lease(wait_s)
        except PoolBusy:
            self.counters.refused += 1
            raise

    def begin_use(self, kind: LeaseKind, waited_s: float, tool: str = "") -> Use:
        """A member was lent, and is used from now on."""
        self._parts.metrics.pools.lent(kind, waited_s)
        return Use.begins(kind, waited_s, tool)

    def _busy(self, wait_s: float) -> PoolBusy:
        states = [member.state for member in self.slots]
        busy = states.count(MemberState.BUSY)
        text = (
            f"no member of pool {self.pool_id!r} was free within {wait_s:g} s: {busy} of {len(states)} run calls, "
            f"{len(states) - busy} are being made ready"
        )
        return PoolBusy(self.pool_id, f"{text} ({self.trouble})" if self.trouble else text)

    def give_back(self, member: Member, use: Use | None = None) -> None:
        """Takes a member back. After a ``use`` it is reset before anybody else gets it."""
        if self.closed is not None:
            return
        if use is None:
            self.lending.offer(member)
        else:
            member.calls += 1
            self.counters.runs += 1
            self._recycle_later(member, use)

    def give_back_unfit(self, member: Member) -> None:
        """Takes a member back that is not what it should be. It is reset, or replaced, before anybody gets it."""
        if self.closed is None:
            self._recycle_later(member, None)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """A member becomes a sandbox of somebody's own, or does not: until that is clear, none is removed.

        Raises why the pool is closed.
        """
        if self.closed is not None:
            raise self.closed
        self._in_hand += 1
        self._none_in_hand.clear()
        try:
            yield
        finally:
            self._in_hand -= 1
            if not self._in_hand:
                self._none_in_hand.set()

    def part_with(self, member: Member, use: Use) -> None:
        """Lets go of a member whose sandbox is somebody's own from now on. Its slot is filled again."""
        if member in self.slots:
            self._drop(member)
            self._parts.pools.forget_member(self.pool_id, member.slot)
            if (made := member.successor) is not None:
                member.successor = None
                self._settle(self._add(), made)
            self.fill()
        member.is_retired = True  # what is being made to succeed it has no place any more
        self.counters.claims += 1
        self._book.note(member, use, LeaseOutcome.CLAIMED)

    def _unfit(self, member: Member) -> None:
        self._recycle_later(member, None)

    def _move(self, member: Member, state: MemberState) -> None:
        if member in self.slots:
            self._parts.metrics.pools.member_moved(member.state, state)
        member.state, member.since = state, time.monotonic()

    # -- making as new

    def _recycle_later(self, member: Member, use: Use | None) -> None:
        self._move(member, MemberState.RESETTING)
        self.spawn(self._recycle(member, use), f"reset {member.sandbox_id}")

    async def _recycle(self, member: Member, use: Use | None) -> None:
        """Resets a member, or fills its slot with a new sandbox of the same id; then others may have it."""
        record, baseline, began = member.record, member.baseline, time.monotonic()
        if member.is_retired or member.successor is not None or record is None or baseline is None:
            if use is not None:
                self._book.note(member, use, LeaseOutcome.REPLACED, "its time in the pool was over")
            await self._succeed(member)
            return
        fields = {"pool_id": self.pool_id, "sandbox_id": member.sandbox_id}
        try:
            ready = await self.crew.clean(record, baseline)
        except ResetFailed as error:
            log.warning("member is replaced", extra={**fields, "reason": str(error)})
            if use is not None:
                self._book.note(member, use, LeaseOutcome.REPLACED, str(error), error.proof, began)
            await self._replace(member)
            return
        proof = ready.shown.proof
        member.clean_at = ready.clean_at
        self.counters.resets += 1
        self._parts.metrics.pools.reset(ResetOutcome.CLEAN, time.monotonic() - began)
        self.lending.offer(member)
        if use is not None:
            self._book.note(member, use, LeaseOutcome.CLEAN, "", proof, began)
        counts = {"processes_killed": proof.processes_killed, "files_removed": proof.files_removed}
        log.debug("member reset", extra={**fields, **counts, "left": 0})

    async def _succeed(self, member: Member) -> None:
        """Puts what was made ahead into the place of a member's sandbox, or nothing if it has no place any more."""
        old, made, member.successor = member.record, member.successor, None
        if member.is_retired:
            gone = [each for each in (old, made.record if made is not None else None) if each is not None]
            for error in await self.crew.remove_all(gone):
                log.error("member left behind", extra={"pool_id": self.pool_id, "reason": str(error)})
        elif made is None:
            await self._replace(member)
        else:
            self._settle(member, made)
            if old is not None:
                await self.crew.remove_all([old])

    async def _replace(self, member: Member) -> None:
        """Fills a slot with a new sandbox, of the same id if there was one. Tries until that works or it closes."""
        self._move(member, MemberState.REPLACING)
        sandbox_id, delay_s, was_there = member.sandbox_id, RETRY_FIRST_S, member.record is not None
        while not member.is_retired:
            try:
                async with self.crew.turn(paced=True):
                    if member.record is not None:
                        await self.crew.remove(member.record)
                    made = await self.crew.make(sandbox_id)
            except SandboxExists:  # somebody else took the id meanwhile
                sandbox_id = ""
            except ShuttingDown:
                return
            except EnclaveError as error:
                self._failed(error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MOST_S)
            else:
                if was_there:
                    self._replaced()
                self._settle(member, made)
                return
        await self._succeed(member)

    def _failed(self, error: EnclaveError) -> None:
        self.counters.failed += 1
        self._see_trouble(f"a member could not be made: {error}")
        self._parts.metrics.pools.reset(ResetOutcome.FAILED)
        log.error("member not made", extra={"pool_id": self.pool_id, "reason": str(error)})

    def _see_trouble(self, trouble: str) -> None:
        if bool(trouble) is not bool(self.trouble):
            self._parts.metrics.pools.troubled(1 if trouble else -1)
        self.trouble = trouble

    def _replaced(self) -> None:
        self.counters.replaced += 1
        self._parts.metrics.pools.reset(ResetOutcome.REPLACED)

    def _settle(self, member: Member, made: Made) -> None:
        """A slot has a sandbox that is ready."""
        member.record, member.baseline = made.record, made.baseline
        member.clean_at, member.calls, member.is_stale = made.clean_at, 0, False
        self._see_trouble("")
        if member.is_retired:
            self._recycle_later(member, None)
            return
        row = MemberRow(self.pool_id, member.slot, made.record.id, made.record.number, made.baseline)
        self._parts.pools.note_member(row)
        self.lending.offer(member)

    # -- more, fewer, younger

    def replan(self, plan: PoolPlan) -> None:
        """Changes what the pool is to be. Members of another kind are replaced one after the other."""
        before, self.crew.plan = self.crew.plan, plan
        if replace(before, size=0, member_age_max_s=None, refill_per_s=1.0) != replace(
            plan, size=0, member_age_max_s=None, refill_per_s=1.0
        ):
            for member in self.slots:
                member.is_stale = True
        ranks = {MemberState.REPLACING: 0, MemberState.IDLE: 1, MemberState.RESETTING: 2, MemberState.BUSY: 3}
        spare = sorted(self.slots, key=lambda each: (ranks[each.state], -each.slot))[: len(self.slots) - plan.size]
        for member in spare if len(self.slots) > plan.size else ():
            self._retire(member)
        self.fill()

    def _retire(self, member: Member) -> None:
        """Takes a slot away. Its sandbox goes at once if it is free, else when it comes back."""
        self._drop(member)
        member.is_retired = True
        self._parts.pools.forget_member(self.pool_id, member.slot)
        if self.lending.withdraw(member):
            self._recycle_later(member, None)

    def _drop(self, member: Member) -> None:
        if self.closed is None:  # else that was told when it closed
            self._parts.metrics.pools.member_moved(member.state, None)
        self.slots.remove(member)

    async def renew(self, member: Member) -> None:
        """Replaces a free member ahead of demand, so that the pool is never without one for it."""
        if len(self.lending.idle) > 1:
            if self.lending.withdraw(member):
                log.info("member is renewed", extra={"pool_id": self.pool_id, "sandbox_id": member.sandbox_id})
                await self._replace(member)
            return
        async with self.crew.turn(paced=True):
            member.successor = await self.crew.make()
        if member.is_retired:
            await self._succeed(member)
            return
        log.info("member is renewed", extra={"pool_id": self.pool_id, "sandbox_id": member.sandbox_id})
        self._replaced()
        if self.lending.withdraw(member):
            await self._succeed(member)

    # -- what is told of them

    def infos(self) -> tuple[PoolMember, ...]:
        """All members, in the order of their slots."""
        now, clock = time.monotonic(), asyncio.get_running_loop().time()
        return tuple(
            PoolMember(
                member.slot,
                member.sandbox_id,
                member.state,
                max(0.0, now - member.since),
                max(0.0, clock - member.record.born) if member.record is not None else 0.0,
                member.calls,
            )
            for member in self.slots
        )
