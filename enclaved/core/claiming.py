"""Claims: a member of a pool becomes a sandbox of somebody's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from enclaved.core.background import Background
from enclaved.core.leases import Use
from enclaved.core.lending import Member
from enclaved.core.members import Members
from enclaved.core.policy import check_labels
from enclaved.core.pool_runs import check_lent, check_wait
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state.rows import encode
from enclaved.errors import InvalidRequest, LimitReached, PolicyDenied, SandboxLost, SandboxNotFound, WrongState
from enclaved.model import Claimed, ClaimWish, LeaseKind, Sandbox, SandboxUpdate


@dataclass(slots=True)
class _Turn:
    """Callers with one request id, one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Claims:
    """Hands members over. Whoever asks again with the same request id gets the same sandbox."""

    def __init__(self, sandboxes: Sandboxes, background: Background) -> None:
        self._sandboxes, self._background = sandboxes, background
        self._turns: dict[str, _Turn] = {}

    async def claim(
        self, members: Members, wish: ClaimWish, wait_s: float, may_use: Callable[[SandboxRecord], None]
    ) -> Claimed:
        """See `Pools.claim`. ``may_use`` raises `PolicyDenied` for a member that the caller could not have."""
        check_wait(wait_s)
        if wish.change.labels is not None:
            check_labels(wish.change.labels)
        if not wish.request_id:
            return await self._claim(members, wish, "", wait_s, may_use)
        digest = _digest(members.pool_id, wish)
        async with self._turn(wish.request_id):
            found = await self._sandboxes.asked_before(wish.request_id, digest)
            if found is not None:
                return Claimed(found, 0.0, 0.0)
            return await self._claim(members, wish, digest, wait_s, may_use)

    @asynccontextmanager
    async def _turn(self, request_id: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(request_id, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[request_id]

    async def _claim(
        self,
        members: Members,
        wish: ClaimWish,
        digest: str,
        wait_s: float,
        may_use: Callable[[SandboxRecord], None],
    ) -> Claimed:
        began = time.monotonic()
        while True:
            waited_s = time.monotonic() - began
            member = await members.lease(max(0.0, wait_s - waited_s))
            check_lent(members, member, may_use)
            use = members.begin_use(LeaseKind.CLAIM, time.monotonic() - began)
            record_id = member.sandbox_id
            handed: asyncio.Future[Sandbox | None] = asyncio.get_running_loop().create_future()
            work = self._give(members, member, use, wish, digest)
            try:  # to the end, even if the caller leaves in between: either the pool has it, or somebody else
                sandbox: Sandbox | None = await self._background.finish(
                    _tell(work, handed), f"claim {member.sandbox_id}"
                )
            except asyncio.CancelledError:
                if not wish.request_id:
                    self._background.spawn(self._discard(handed), f"undo claim {record_id}")
                raise
            if sandbox is not None:
                return Claimed(sandbox, use.waited_s, time.monotonic() - use.held_since)

    async def _discard(self, handed: asyncio.Future[Sandbox | None]) -> None:
        """Removes what was handed over to a caller who has left and cannot ask for it again."""
        sandbox = await handed
        if sandbox is not None:
            with contextlib.suppress(SandboxNotFound):
                await self._sandboxes.delete(sandbox.id)

    async def _give(self, members: Members, member: Member, use: Use, wish: ClaimWish, digest: str) -> Sandbox | None:
        with members.handing_over():
            return await self._hand_over(members, member, use, wish, digest)

    async def _hand_over(
        self, members: Members, member: Member, use: Use, wish: ClaimWish, digest: str
    ) -> Sandbox | None:
        """Makes a member a sandbox of its own; ``None`` if it was lost in this moment."""
        record = member.record
        if record is None or record.is_forgotten:
            members.give_back_unfit(member)
            return None
        try:
            request = wish.request_id, digest
            sandbox = await self._sandboxes.hand_over(record, _with_life(wish, record), request)
        except (SandboxNotFound, SandboxLost, WrongState):
            members.give_back_unfit(member)
            return None
        except BaseException as error:
            if not isinstance(
                error, InvalidRequest | LimitReached | PolicyDenied
            ):  # the engine may have heard of other limits
                member.baseline = None
            members.give_back_unfit(member)
            raise
        members.part_with(member, use)
        return sandbox


async def _tell(work: Coroutine[Any, Any, Sandbox | None], handed: asyncio.Future[Sandbox | None]) -> Sandbox | None:
    try:
        found = await work
    except BaseException:
        handed.set_result(None)
        raise
    handed.set_result(found)
    return found


def _with_life(wish: ClaimWish, record: SandboxRecord) -> SandboxUpdate:
    change = wish.change
    ttl_s = record.spec.ttl_s if change.ttl_s is None else change.ttl_s
    return replace(change, ttl_s=ttl_s, labels={} if change.labels is None else change.labels)


def _digest(pool_id: str, wish: ClaimWish) -> str:
    """Tells a claim from another request."""
    text = encode({"claim": pool_id, "change": wish.change})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
