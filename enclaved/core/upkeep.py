"""Looks after the members of a pool that nobody asks for: dead ones are replaced, old ones renewed one at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from enclaved.core.lending import Member
from enclaved.core.members import Members
from enclaved.errors import EnclaveError
from enclaved.model import MemberState

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
RETRY_S: Final = 5.0
LIFE_SHARE: Final = 0.8
"""Share of its time to live after which a member is too old to be lent for long."""


async def keep(members: Members) -> None:
    """Looks from time to time, until the pool closes."""
    while members.closed is None:
        await asyncio.sleep(LOOK_EVERY_S)
        replace_the_dead(members)
        try:
            member = oldest_due(members)
            if member is not None:
                await members.renew(member)
        except EnclaveError as error:
            log.warning("member not renewed", extra={"pool_id": members.pool_id, "reason": str(error)})
            await asyncio.sleep(RETRY_S)


def replace_the_dead(members: Members) -> None:
    """Makes members ready again that were lost, or used past the pool, while they were free."""
    for member in [*members.lending.idle]:
        if not member.is_as_new and members.lending.withdraw(member):
            members.lending.offer(member)


def oldest_due(members: Members) -> Member | None:
    """The member that is to be renewed next: free ones first, then the oldest."""
    now = asyncio.get_running_loop().time()
    due = [
        (member.state is not MemberState.IDLE, member.record.born, member.slot, member)
        for member in members.slots
        if member.record is not None and member.successor is None and member.state is not MemberState.REPLACING
        if member.is_stale or now - member.record.born > _age_most_s(members, member)
    ]
    return min(due)[-1] if due else None


def _age_most_s(members: Members, member: Member) -> float:
    by_life = LIFE_SHARE * member.record.spec.ttl_s if member.record is not None else 0.0
    return min(by_life, members.plan.member_age_max_s or by_life)
