"""Pools: sandboxes kept ready for calls that need none of their own. docs/pools.md tells what callers may rely on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from enclaved.core import identity
from enclaved.core.claiming import Claims
from enclaved.core.crew import PoolParts
from enclaved.core.members import Members
from enclaved.core.pages import checked_size
from enclaved.core.policy import Role, check_id
from enclaved.core.pool_plans import SIZE_MAX, changed, check_plan
from enclaved.core.pool_rejoin import KeptMembers, member_of
from enclaved.core.pool_runs import run_in
from enclaved.core.record import SandboxRecord
from enclaved.core.state import PoolRow
from enclaved.core.upkeep import keep
from enclaved.errors import (
    EnclaveError,
    InvalidRequest,
    LimitReached,
    NoSpace,
    PolicyDenied,
    PoolNotFound,
    ShuttingDown,
)
from enclaved.model import (
    LOCAL,
    Claimed,
    ClaimWish,
    Identity,
    LeasePage,
    MemberState,
    PoolChange,
    PoolInfo,
    PoolOrigin,
    PoolPlan,
    PoolStatus,
    RunResult,
    SandboxSpec,
    ToolCall,
)

__all__ = ["SIZE_MAX", "WAIT_DEFAULT_S", "Pools"]

log = logging.getLogger(__name__)

WAIT_DEFAULT_S = 60.0
POOLS_MAX = 24
"""So many, however large, fit into one answer of ListPools."""
DELETE_RETRY_S = 2.0


@dataclass(slots=True, eq=False)
class _Pool:
    members: Members
    origin: PoolOrigin
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once all members were made, or what was made of them is gone again."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever deletes it."""
    is_ending: bool = False
    """Whether its deletion is tried until it is done."""
    covered: tuple[SandboxSpec, Role] | None = None
    """What was last seen to be granted, and to which role; a policy that is read again has other ones."""

    @property
    def id(self) -> str:
        return self.members.pool_id

    @property
    def info(self) -> PoolInfo:
        return PoolInfo(self.id, tuple(member.sandbox_id for member in self.members.slots))

    def row(self, *, made: bool = True, deleting: bool = False) -> PoolRow:
        """The pool as it is written down."""
        owner = self.members.crew.owner
        return PoolRow(self.id, self.origin, self.members.plan, made, self.created_at, deleting, owner)


class Pools:
    """All pools of this daemon."""

    def __init__(self, parts: PoolParts) -> None:
        self._parts = parts
        self._pools: dict[str, _Pool] = {}
        self._claims = Claims(parts.sandboxes, parts.background)
        self._closing = False
        self._defined: Mapping[str, PoolPlan] = {}

    # -- made by callers

    async def initialize(self, plan: PoolPlan, *, pool_id: str = "") -> PoolInfo:
        """Makes a pool of 1 to 100 members and returns when all run; one of this id that exists is left as it is.

        All or nothing: if a member cannot be made, or the caller leaves before the end, those that were made are
        removed. Raises `InvalidRequest`, `PolicyDenied` (more members than the daemon may have sandboxes),
        `LimitReached`, `NoSpace`, and what `Sandboxes.create` raises.
        """
        if pool_id:
            check_id(pool_id, "pool_id")
        check_plan(plan)
        while (known := self._pools.get(pool_id)) is not None:
            await known.settled.wait()
            if self._pools.get(pool_id) is known:
                if known.members.closed is None:
                    return known.info
                with contextlib.suppress(PoolNotFound):  # that was done meanwhile
                    await self._finish_deleting(known)  # an earlier try failed
        if self._closing:
            raise ShuttingDown
        if len(self._pools) >= POOLS_MAX:
            text = f"there are {len(self._pools)} pools, and at most {POOLS_MAX} are possible; delete one first"
            raise LimitReached("daemon", "pools", text)
        self._parts.sandboxes.check_room(plan.size, "size")
        pool = self._enter(pool_id or self._new_id(), plan, PoolOrigin.CALLER, identity.current())
        try:
            self._parts.pools.save(pool.row(made=False))
            await pool.members.make()
        except BaseException:
            del self._pools[pool.id]
            self._parts.pools.forget(pool.id)
            raise
        finally:
            pool.settled.set()
        self._parts.pools.note(pool.row())
        self._look_after(pool)
        log.info("pool made", extra={"pool_id": pool.id, "size": plan.size})
        return pool.info

    def _enter(self, pool_id: str, plan: PoolPlan, origin: PoolOrigin, owner: Identity = LOCAL) -> _Pool:
        pool = self._pools[pool_id] = _Pool(Members(pool_id, plan, self._parts, owner), origin)
        return pool

    def _look_after(self, pool: _Pool) -> None:
        pool.members.spawn(keep(pool.members), "keep")

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
        ends its run. Raises `PoolNotFound`, `PolicyDenied` for a caller who could not have such a sandbox, `PoolBusy`,
        `InvalidRequest`, and what `Executions.open` raises.
        """
        pool = self._made(pool_id)
        self._check_may_use(pool)
        may_use = partial(self._check_covers, pool)
        return await run_in(pool.members, self._parts.executions, call, wait_timeout_s, may_use)

    async def claim(self, pool_id: str, wish: ClaimWish, wait_timeout_s: float = WAIT_DEFAULT_S) -> Claimed:
        """Takes the next free member out of a pool, as a sandbox of the caller's own; the slot is filled again.

        Raises `PoolNotFound`, `PolicyDenied` for a caller who could not have such a sandbox, `PoolBusy`, `LimitReached`
        for one who has as many as may be, and what `Sandboxes.update` raises for what is to be other than in the pool.
        """
        pool = self._made(pool_id)
        self._check_may_use(pool)
        return await self._claims.claim(pool.members, wish, wait_timeout_s, partial(self._check_covers, pool))

    def _check_may_use(self, pool: _Pool) -> None:
        """Looks, before the caller waits, whether it could have a sandbox like those of a pool. Raises `PolicyDenied`.

        Members are alike unless the policy was changed since some were made; so each one is looked at that is lent.
        """
        record = next((member.record for member in pool.members.slots if member.record is not None), None)
        if record is not None:
            self._check_covers(pool, record)

    def _check_covers(self, pool: _Pool, record: SandboxRecord) -> None:
        """Looks whether the caller could have this very sandbox. Raises `PolicyDenied`."""
        policy, who = self._parts.sandboxes.policy, identity.current()
        found = record.spec, policy.role(who)
        if pool.covered != found:
            policy.covers(record.spec, who)
            pool.covered = found

    # -- looking

    def get(self, pool_id: str) -> PoolStatus:
        """Shows a pool with its members. Raises `PoolNotFound`."""
        return self._status(self._made(pool_id))

    def list(self) -> tuple[PoolStatus, ...]:
        """Shows all pools, oldest first."""
        made = [pool for pool in self._pools.values() if pool.settled.is_set() and pool.members.closed is None]
        return tuple(self._status(pool) for pool in sorted(made, key=lambda pool: (pool.created_at, pool.id)))

    @staticmethod
    def _status(pool: _Pool) -> PoolStatus:
        members = pool.members
        return PoolStatus(
            pool.id,
            pool.origin,
            members.plan,
            members.infos(),
            members.lending.waiting,
            replace(members.counters),
            members.trouble,
            pool.created_at,
        )

    def leases(self, pool_id: str, *, page_size: int = 0, page_token: str = "") -> LeasePage:
        """Shows the last uses of a pool's members, newest first; 1,000 are kept.

        Raises `PoolNotFound`, and `InvalidRequest` for a bad size or token.
        """
        self._made(pool_id)
        size = checked_size(page_size)
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 18):
            raise InvalidRequest.of("page_token", "not a token of this listing; use next_page_token")
        found = self._parts.leases.page(pool_id, int(page_token) if page_token else None, size + 1)
        token = str(found[size - 1].number) if len(found) > size else ""
        return LeasePage(tuple(found[:size]), token)

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

    # -- changing

    async def update(self, pool_id: str, change: PoolChange) -> PoolStatus:
        """Changes a pool while it serves. More members are made in the background, spare ones go when they are free.

        Raises `PoolNotFound`, `InvalidRequest`, `PolicyDenied` (also for the operator's), `LimitReached`, `NoSpace`.
        """
        pool = self._made(pool_id)
        if pool.members.closed is not None:
            raise pool.members.closed
        if pool.origin is PoolOrigin.OPERATOR:
            text = f"pool {pool_id!r} is defined in the daemon's configuration; it is changed there"
            raise PolicyDenied("pools", "pool_id", text)
        before, plan = pool.members.plan, changed(pool.members.plan, change)
        if plan.size > before.size:
            self._parts.sandboxes.check_room(plan.size - len(pool.members.slots), "size")
        self._parts.pools.save(replace(pool.row(), plan=plan))
        pool.members.replan(plan)
        log.info("pool changed", extra={"pool_id": pool_id, "size": plan.size})
        return self._status(pool)

    async def delete(self, pool_id: str) -> None:
        """Deletes a pool with its members; calls that run are lost, those that wait hear `PoolNotFound`.

        That is certain from the call on, also over the end of the daemon. Raises `PoolNotFound`, `PolicyDenied` for one
        that the operator defines, and `EngineUnavailable` where members are left, which go as soon as that is possible.
        """
        pool = self._pools.get(pool_id)
        if pool is None:
            raise PoolNotFound(pool_id[:64])
        if pool.origin is PoolOrigin.OPERATOR and pool.members.closed is None:
            text = f"pool {pool_id!r} is defined in the daemon's configuration; it ends when it is taken out there"
            raise PolicyDenied("pools", "pool_id", text)
        await pool.settled.wait()
        await self._finish_deleting(pool)

    async def _finish_deleting(self, pool: _Pool) -> None:
        await self._parts.background.finish(self._delete(pool), f"delete pool {pool.id}")

    async def _delete(self, pool: _Pool) -> None:
        if self._pools.get(pool.id) is not pool:
            raise PoolNotFound(pool.id)
        if not isinstance(pool.members.closed, PoolNotFound):
            self._parts.pools.note(pool.row(deleting=True))
        pool.members.close(PoolNotFound(pool.id))
        async with pool.lock:
            if self._pools.get(pool.id) is not pool:
                raise PoolNotFound(pool.id)
            try:
                await pool.members.remove()
            except EnclaveError:
                self._end_later(pool, DELETE_RETRY_S)
                raise
            del self._pools[pool.id]
            self._parts.pools.forget(pool.id)
        log.info("pool deleted", extra={"pool_id": pool.id})
        if pool.id in self._defined and not self._closing:  # the operator has put it back meanwhile
            self.define(self._defined)

    # -- defined by the operator, and taken up

    def define(self, plans: Mapping[str, PoolPlan]) -> None:
        """Makes the operator's pools what they are to be, in the background: new ones, changed ones, no others."""
        self._defined = plans
        for pool_id, plan in plans.items():
            pool = self._pools.get(pool_id)
            if pool is not None and not pool.settled.is_set():
                self._parts.background.spawn(self._define_again(pool), f"define pool {pool_id}")
            elif pool is None:
                pool = self._enter(pool_id, plan, PoolOrigin.OPERATOR)
                pool.settled.set()
                self._note(pool)
                pool.members.fill()
                self._look_after(pool)
                log.info("pool defined", extra={"pool_id": pool_id, "size": plan.size})
            elif pool.members.closed is None and (pool.members.plan, pool.origin) != (plan, PoolOrigin.OPERATOR):
                pool.origin = PoolOrigin.OPERATOR
                pool.members.replan(plan)
                self._note(pool)
                log.info("pool changed", extra={"pool_id": pool_id, "size": plan.size})
        for pool in [*self._pools.values()]:
            if pool.origin is PoolOrigin.OPERATOR and pool.id not in plans:
                self._end_later(pool)

    async def _define_again(self, pool: _Pool) -> None:
        """A caller makes the pool at this moment; whatever comes of that, it is the operator's afterwards."""
        await pool.settled.wait()
        if not self._closing:
            self.define(self._defined)

    def _note(self, pool: _Pool) -> None:
        try:
            self._parts.pools.save(pool.row())
        except NoSpace as error:  # its members are not to be had either, which is told there
            log.error("pool not written down", extra={"pool_id": pool.id, "reason": str(error)})

    def _end_later(self, pool: _Pool, delay_s: float = 0.0) -> None:
        if not pool.is_ending:
            pool.is_ending = True
            self._parts.background.spawn(self._delete_for_certain(pool, delay_s), f"delete pool {pool.id}")

    async def _delete_for_certain(self, pool: _Pool, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while self._pools.get(pool.id) is pool and not self._closing:
            try:
                await self._delete(pool)
            except PoolNotFound:
                return
            except EnclaveError as error:
                log.warning("pool not deleted yet", extra={"pool_id": pool.id, "reason": str(error)})
                await asyncio.sleep(DELETE_RETRY_S)

    def take_up(self, kept: KeptMembers) -> None:
        """Goes on with the pools of an earlier daemon, whose sandboxes were taken up before."""
        of_pool = {row.id: [member for member in kept.members if member.pool_id == row.id] for row in kept.pools}
        for row in kept.pools:
            if not kept.goes_on(row):
                self._parts.pools.forget(row.id)  # its sandboxes go, too
                continue
            pool = self._enter(row.id, row.plan, row.origin, row.owner)
            pool.created_at = row.created_at
            pool.settled.set()
            for member_row in of_pool[row.id]:
                record = self._parts.sandboxes.known(member_row.sandbox_id)
                if record is None or (record.pool_id, record.number) != (row.id, member_row.number):
                    record = None
                pool.members.adopt(member_of(member_row, record))
            pool.members.replan(row.plan)  # makes what is missing
            self._look_after(pool)
            log.info("pool adopted", extra={"pool_id": row.id, "members": len(pool.members.slots)})

    def close(self, *, keep_members: bool = False) -> None:
        """Lends no member and makes no pool any more. Members stay if they are for the next daemon, and so do pools.

        Otherwise `Sandboxes.close` removes the members.
        """
        self._closing = True
        for pool in self._pools.values():
            pool.members.close(ShuttingDown())
            if not keep_members:
                self._parts.pools.forget(pool.id)
