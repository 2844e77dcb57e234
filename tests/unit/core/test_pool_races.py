"""Pools over stand-ins: what two do with one member at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from enclaved.core.leases import Use
from enclaved.errors import EngineUnavailable, PolicyDenied, PoolNotFound
from enclaved.model import ClaimWish, LeaseKind, LeaseOutcome, MemberState, PoolChange, PoolOrigin, PoolPlan
from tests.unit.core.pool_stand_ins import LONG_S, FakeRecord, World, pool_world, settle


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


# -- members that were made before the policy was changed


async def test_a_member_is_lent_only_to_who_may_have_this_very_one(world: World) -> None:
    members = await world.pool(size=2)
    first, second = members.slots
    assert first.record is not None
    assert second.record is not None
    wider = SimpleNamespace(ttl_s=7.0)
    second.record.spec = wider  # type: ignore[assignment]  # the stand-in's specs hold what the pool looks at
    world.sandboxes.policy.denied.append(wider)
    assert (await world.pools.claim("p", ClaimWish())).sandbox.id == "box-1"
    with pytest.raises(PolicyDenied):
        await world.pools.claim("p", ClaimWish(), 0.0)
    assert second.state is MemberState.IDLE
    assert second in members.lending.idle


# -- claims and the end of a pool


async def test_a_claim_in_hand_is_kept_when_its_pool_is_deleted(world: World) -> None:
    members = await world.pool(2)
    world.sandboxes.may_update.clear()
    claim = asyncio.create_task(world.pools.claim("p", ClaimWish()))
    await settle(lambda: world.sandboxes.updating == 1)
    deletion = asyncio.create_task(world.pools.delete("p"))
    await settle(lambda: members.closed is not None)
    world.sandboxes.may_update.set()
    claimed = await claim
    await deletion
    assert set(world.sandboxes.records) == {claimed.sandbox.id}
    assert (world.tables.members, world.pools.stats()) == ({}, {})
    assert [world.count(state) for state in ("idle", "busy", "resetting", "replacing")] == [0, 0, 0, 0]


async def test_a_claim_that_fails_while_its_pool_is_deleted_leaves_the_member_to_the_deletion(world: World) -> None:
    members = await world.pool()
    world.sandboxes.may_update.clear()
    world.sandboxes.update_errors.append(EngineUnavailable("unix:///x", "away"))
    claim = asyncio.create_task(world.pools.claim("p", ClaimWish()))
    await settle(lambda: world.sandboxes.updating == 1)
    deletion = asyncio.create_task(world.pools.delete("p"))
    await settle(lambda: members.closed is not None)
    world.sandboxes.may_update.set()
    with pytest.raises(EngineUnavailable):
        await claim
    await deletion
    assert world.sandboxes.records == {}


async def test_a_successor_goes_with_the_pool_whose_member_is_being_claimed(world: World) -> None:
    members = await world.pool(refill_per_s=100.0)
    member = await members.lease(0)
    await members.renew(member)
    members.give_back(member)
    world.sandboxes.may_update.clear()
    claim = asyncio.create_task(world.pools.claim("p", ClaimWish()))
    await settle(lambda: world.sandboxes.updating == 1)
    deletion = asyncio.create_task(world.pools.delete("p"))
    await settle(lambda: members.closed is not None)
    world.sandboxes.may_update.set()
    claimed = await claim
    await deletion
    assert set(world.sandboxes.records) == {claimed.sandbox.id}


async def test_a_claim_that_gets_its_member_as_the_pool_closes_hears_that_it_is_gone(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    claim = asyncio.create_task(world.pools.claim("p", ClaimWish()))
    await settle(lambda: members.lending.waiting == 1)
    members.give_back(member)
    members.close(PoolNotFound("p"))
    with pytest.raises(PoolNotFound):
        await claim
    await world.pools.delete("p")
    assert world.sandboxes.records == {}


# -- what others run in a member


async def test_what_is_run_in_a_member_before_the_last_one_is_made_is_reset_before_it_is_lent(world: World) -> None:
    world.sandboxes.hold_from = 2
    world.sandboxes.hold.clear()
    making = asyncio.create_task(world.pools.initialize(PoolPlan(2), pool_id="p"))
    await settle(lambda: "box-1" in world.sandboxes.records)
    for _ in range(10):
        await asyncio.sleep(0)
    world.sandboxes.records["box-1"].executions_started += 1
    world.sandboxes.hold.set()
    await making
    await settle(lambda: world.count("idle") == 2)
    assert world.resets.done == ["box-1"]


async def test_a_member_in_which_something_is_run_while_it_is_warmed_is_never_lent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = await world.pool()
    old = members.slots[0].record

    async def warm(record: FakeRecord, *_: object) -> int:
        await asyncio.sleep(0)
        record.executions_started += 1 if record is not old else 2  # one of ours, and one past the pool
        return 1

    monkeypatch.setattr("enclaved.core.crew.warm", warm)
    members.give_back(await members.lease(0), Use.begins(LeaseKind.RUN, 0.0))
    assert (await members.lease(LONG_S)).record is not old
    assert [lease.outcome for lease in world.tables.leases] == [LeaseOutcome.REPLACED]


# -- deletions that are interrupted


async def test_a_deletion_that_fails_half_way_is_written_down_and_finished_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enclaved.core.pool.DELETE_RETRY_S", 0.0)
    await world.pool(3)
    away = [EngineUnavailable("unix:///x", "away") for _ in range(4)]
    world.sandboxes.delete_errors.extend(away)
    with pytest.raises(EngineUnavailable):
        await world.pools.delete("p")
    assert world.tables.pools["p"].deleting
    await settle(lambda: not world.tables.pools)
    assert (world.sandboxes.records, world.pools.stats()) == ({}, {})


async def test_a_deletion_is_written_down_before_the_first_member_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.pool(2)
    seen: list[bool] = []
    delete = world.sandboxes.delete

    async def look(sandbox_id: str) -> None:
        seen.append(world.tables.pools["p"].deleting)
        await delete(sandbox_id)

    monkeypatch.setattr(world.sandboxes, "delete", look)
    await world.pools.delete("p")
    assert seen == [True, True]


# -- the operator's pools


async def test_only_the_configuration_changes_a_pool_of_the_operator(world: World) -> None:
    world.pools.define({"p": PoolPlan(1)})
    await settle(lambda: world.count("idle") == 1)
    with pytest.raises(PolicyDenied, match="it is changed there"):
        await world.pools.update("p", PoolChange(size=2))
    assert len(world.members().slots) == 1


async def test_a_pool_that_the_operator_puts_back_while_it_is_deleted_is_made_again(world: World) -> None:
    world.pools.define({"p": PoolPlan(1)})
    await settle(lambda: world.count("idle") == 1)
    old = world.members()
    world.pools.define({})
    await settle(lambda: old.closed is not None)
    world.pools.define({"p": PoolPlan(2)})
    await settle(lambda: world.count("idle") == 2)
    assert world.members() is not old
    assert len(of_the_pool(world)) == 2


async def test_a_pool_that_becomes_the_operators_while_it_is_made_has_no_member_twice(world: World) -> None:
    world.sandboxes.hold.clear()
    making = asyncio.create_task(world.pools.initialize(PoolPlan(2), pool_id="p"))
    await settle(lambda: world.sandboxes.now == 2)
    world.pools.define({"p": PoolPlan(3, refill_per_s=100.0)})
    world.sandboxes.hold.set()
    await making
    await settle(lambda: world.count("idle") == 3)
    assert len(of_the_pool(world)) == 3
    assert world.tables.pools["p"].origin is PoolOrigin.OPERATOR
