"""Pools over stand-ins: what two do with one member at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from enclaved.model import ClaimWish, MemberState
from tests.unit.core.pool_stand_ins import World, pool_world, settle


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with pool_world(monkeypatch) as made:
        yield made


def of_the_pool(world: World) -> set[str]:
    return {record.id for record in world.sandboxes.records.values() if record.pool_id}


# -- claims and renewals


async def test_a_member_that_is_claimed_while_its_successor_is_made_leaves_no_sandbox_behind(world: World) -> None:
    members = await world.pool(refill_per_s=100.0)
    world.sandboxes.hold.clear()
    renewal = asyncio.create_task(members.renew(members.slots[0]))
    await settle(lambda: world.sandboxes.now == 1)
    claimed = await world.pools.claim("p", ClaimWish())
    world.sandboxes.hold.set()
    await renewal
    await settle(lambda: members.slots[0].state is MemberState.IDLE)
    assert of_the_pool(world) == {members.slots[0].sandbox_id}
    assert claimed.sandbox.id in world.sandboxes.records
    assert (members.counters.claims, members.counters.replaced) == (1, 0)


async def test_a_successor_that_is_ready_takes_the_place_of_the_member_that_is_claimed(world: World) -> None:
    members = await world.pool(refill_per_s=100.0)
    member = await members.lease(0)
    await members.renew(member)
    assert member.successor is not None
    ahead = member.successor.record
    members.give_back(member)
    claimed = await world.pools.claim("p", ClaimWish())
    assert claimed.sandbox.id == "box-1"
    await settle(lambda: members.slots[0].state is MemberState.IDLE)
    assert members.slots[0].record is ahead
    assert of_the_pool(world) == {ahead.id}
