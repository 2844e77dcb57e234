"""Pools over stand-ins for sandboxes: who gets a member when, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from enclaved.core.crew import CREATES_AT_ONCE
from enclaved.core.leases import Use
from enclaved.errors import (
    EngineUnavailable,
    ImageNotFound,
    InvalidRequest,
    PoolBusy,
    PoolNotFound,
    ShuttingDown,
)
from enclaved.model import LeaseKind, PoolInfo, PoolPlan, SandboxRequest, SandboxState, ToolCall
from tests.unit.core.pool_stand_ins import LONG_S, World, pool_world, settle, waiting


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with pool_world(monkeypatch) as made:
        yield made


def a_use() -> Use:
    return Use.begins(LeaseKind.RUN, 0.0)


# -- making


async def test_a_pool_has_its_members_in_the_order_of_their_slots(world: World) -> None:
    info = await world.pools.initialize(PoolPlan(3, labels={"a": "b"}), pool_id="p")
    assert info == PoolInfo("p", ("box-1", "box-2", "box-3"))
    assert world.sandboxes.asked == (3, "size")
    assert world.pools.stats() == {"p": 3}
    assert world.count("idle") == 3


async def test_a_pool_without_an_id_gets_one(world: World) -> None:
    first, second = [await world.pools.initialize(PoolPlan(1)) for _ in range(2)]
    assert first.id != second.id
    assert set(world.pools.stats()) == {first.id, second.id}


@pytest.mark.parametrize("size", [0, -1, 101])
async def test_a_size_without_sense_is_refused(world: World, size: int) -> None:
    with pytest.raises(InvalidRequest, match="size: must be from 1 to 100"):
        await world.pools.initialize(PoolPlan(size))


@pytest.mark.parametrize(
    ("pool_id", "plan"),
    [
        ("No", PoolPlan(1)),
        ("p", PoolPlan(1, labels={"enclaved.x": "1"})),
        ("p", PoolPlan(1, contexts=("no context",))),
        ("p", PoolPlan(1, preload=("os; import sys",))),
        ("p", PoolPlan(1, preload=("json", "json"))),
        ("p", PoolPlan(1, member_age_max_s=1.0)),
        ("p", PoolPlan(1, member_age_max_s=float("nan"))),
        ("p", PoolPlan(1, refill_per_s=0.0)),
        ("p", PoolPlan(1, refill_per_s=1e9)),
    ],
)
async def test_plans_without_sense_are_refused_before_anything_is_made(
    world: World, pool_id: str, plan: PoolPlan
) -> None:
    with pytest.raises(InvalidRequest):
        await world.pools.initialize(plan, pool_id=pool_id)
    assert world.sandboxes.creations == 0


async def test_a_pool_that_exists_is_left_as_it_is(world: World) -> None:
    first = await world.pools.initialize(PoolPlan(2), pool_id="p")
    assert await world.pools.initialize(PoolPlan(5, SandboxRequest(image="other")), pool_id="p") == first
    assert world.sandboxes.creations == 2


async def test_two_who_initialize_the_same_pool_at_once_get_the_same(world: World) -> None:
    infos = await asyncio.gather(*(world.pools.initialize(PoolPlan(2), pool_id="p") for _ in range(3)))
    assert len(set(infos)) == 1
    assert world.sandboxes.creations == 2


async def test_members_are_made_a_few_at_a_time(world: World) -> None:
    await world.pools.initialize(PoolPlan(20))
    assert world.sandboxes.most == CREATES_AT_ONCE


async def test_if_one_member_cannot_be_made_none_is_left(world: World) -> None:
    world.sandboxes.create_errors[3] = ImageNotFound("x:1", "no registry")
    with pytest.raises(ImageNotFound):
        await world.pools.initialize(PoolPlan(5), pool_id="p")
    assert world.sandboxes.records == {}
    assert world.pools.stats() == {}
    assert world.count("idle") == 0
    assert len((await world.pools.initialize(PoolPlan(2), pool_id="p")).sandbox_ids) == 2


async def test_a_caller_that_leaves_while_members_are_made_gets_none(world: World) -> None:
    world.sandboxes.hold.clear()
    task = asyncio.create_task(world.pools.initialize(PoolPlan(3), pool_id="p"))
    await settle(lambda: world.sandboxes.now == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.sandboxes.records == {}
    assert world.pools.stats() == {}


async def test_when_the_first_of_two_leaves_the_second_makes_the_pool(world: World) -> None:
    world.sandboxes.hold.clear()
    first = asyncio.create_task(world.pools.initialize(PoolPlan(1), pool_id="p"))
    await settle(lambda: world.sandboxes.now == 1)
    second = asyncio.create_task(world.pools.initialize(PoolPlan(2), pool_id="p"))
    await settle(lambda: True)
    first.cancel()
    world.sandboxes.hold.set()
    assert len((await second).sandbox_ids) == 2


# -- lending


async def test_a_free_member_is_lent_at_once(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    assert member.sandbox_id == "box-1"
    assert (world.count("idle"), world.count("busy")) == (0, 1)
    assert world.pools.role("box-1") == "busy"


async def test_a_member_that_was_used_is_reset_before_the_next_gets_it(world: World) -> None:
    members = await world.pool()
    world.resets.may_end.clear()
    members.give_back(await members.lease(0), a_use())
    assert world.count("resetting") == 1
    assert world.pools.role("box-1") == "busy"
    (waiter,) = waiting(members, 1)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 1)
    assert not waiter.done()
    world.resets.may_end.set()
    assert (await waiter).sandbox_id == "box-1"
    assert world.resets.done == ["box-1"]
    assert world.resets_ended("clean") == 1
    assert world.metrics.value("enclaved_pool_waiting") == 0


async def test_those_who_wait_are_served_first_come_first_served(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    served: list[int] = []

    async def call(number: int) -> None:
        lent = await members.lease(LONG_S)
        served.append(number)
        members.give_back(lent, a_use())

    calls = [asyncio.create_task(call(number)) for number in range(10)]
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 10)
    members.give_back(member, a_use())
    await asyncio.gather(*calls)
    assert served == list(range(10))


async def test_nobody_overtakes_those_who_wait(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    (first,) = waiting(members, 1)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 1)
    members.give_back(member)
    with pytest.raises(PoolBusy):
        await members.lease(0)  # the first has not run since, but the member is its
    assert await first is member


async def test_one_who_does_not_wait_hears_at_once_that_all_are_busy(world: World) -> None:
    members = await world.pool(2)
    world.resets.may_end.clear()
    members.give_back(await members.lease(0), a_use())
    await members.lease(0)
    with pytest.raises(PoolBusy, match="within 0 s: 1 of 2 run calls, 1 are being made ready") as caught:
        await members.lease(0)
    assert caught.value.metadata == {"pool_id": "p"}


async def test_one_whose_time_is_over_hears_so_and_the_next_gets_the_member(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    hasty = asyncio.create_task(members.lease(0.001))
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 1)
    (patient,) = waiting(members, 1)
    with pytest.raises(PoolBusy):
        await hasty
    members.give_back(member, a_use())
    assert await patient is member


async def test_one_who_leaves_the_queue_does_not_hold_it_up(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    first, second = waiting(members, 2)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 2)
    first.cancel()
    members.give_back(member)
    assert await second is member


async def test_one_who_leaves_at_the_moment_when_a_member_is_handed_over_passes_it_on(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    first, second = waiting(members, 2)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 2)
    members.give_back(member)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is member


async def test_there_is_a_limit_to_those_who_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclaved.core.lending.WAITERS_MAX", 2)
    members = await world.pool()
    await members.lease(0)
    tasks = waiting(members, 2)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 2)
    with pytest.raises(Exception, match="2 calls wait for members of pool 'p' already"):
        await members.lease(LONG_S)
    for task in tasks:
        task.cancel()


# -- members that are lost


async def test_a_member_whose_reset_fails_is_replaced_under_its_id(world: World) -> None:
    members = await world.pool(2)
    member = await members.lease(0)
    old = member.record
    world.resets.failures = 1
    members.give_back(member, a_use())
    await settle(lambda: world.count("idle") == 2)
    assert member.record is not old
    assert member.sandbox_id == old.id
    assert (world.resets_ended("replaced"), world.resets_ended("clean")) == (1, 0)
    assert world.pools.stats() == {"p": 2}


async def test_a_member_that_was_deleted_behind_our_back_is_replaced_before_it_is_lent(world: World) -> None:
    members = await world.pool(1)
    old = members.slots[0].record
    await world.sandboxes.delete("box-1")
    world.resets.failures = 1
    member = await members.lease(LONG_S)
    assert member.sandbox_id == "box-1"
    assert member.record is not old


async def test_a_member_that_was_stopped_behind_our_back_is_made_ready_again(world: World) -> None:
    members = await world.pool(1)
    world.sandboxes.records["box-1"].state = SandboxState.STOPPED
    world.resets.failures = 1
    assert (await members.lease(LONG_S)).record.state is SandboxState.RUNNING


async def test_a_member_in_which_somebody_ran_something_past_the_pool_is_reset_first(world: World) -> None:
    members = await world.pool(1)
    world.sandboxes.records["box-1"].executions_started += 1
    await members.lease(LONG_S)
    assert world.resets.done == ["box-1"]


async def test_a_sandbox_that_took_the_id_of_a_lost_member_is_left_alone(world: World) -> None:
    members = await world.pool(1)
    await world.sandboxes.delete("box-1")
    await world.sandboxes.create(SandboxRequest(), sandbox_id="box-1")
    world.resets.failures = 1
    member = await members.lease(LONG_S)
    assert member.sandbox_id != "box-1"
    assert "box-1" in world.sandboxes.records


async def test_a_member_that_cannot_be_replaced_is_tried_again_and_those_who_wait_hear_why(world: World) -> None:
    members = await world.pool(1)
    member = await members.lease(0)
    world.resets.failures = 1
    world.sandboxes.create_errors[2] = EngineUnavailable("unix:///x", "the engine is away")
    world.sandboxes.hold.clear()
    members.give_back(member, a_use())
    await settle(lambda: world.count("replacing") == 1)
    world.sandboxes.hold.set()
    await settle(lambda: bool(members.trouble))
    with pytest.raises(PoolBusy, match="the engine is away"):
        await members.lease(0)
    assert (await members.lease(LONG_S)).sandbox_id == "box-1"
    assert (world.resets_ended("failed"), world.resets_ended("replaced")) == (1, 1)
    assert members.trouble == ""


# -- the end


async def test_a_deleted_pool_is_gone_with_its_members(world: World) -> None:
    members = await world.pool(3)
    await members.lease(0)
    await world.pools.delete("p")
    assert world.sandboxes.records == {}
    assert world.pools.stats() == {}
    assert world.pools.role("box-1") is None
    assert [world.count(state) for state in ("idle", "busy", "resetting", "replacing")] == [0, 0, 0, 0]
    with pytest.raises(PoolNotFound):
        await world.pools.delete("p")


async def test_those_who_wait_for_a_member_of_a_deleted_pool_hear_so(world: World) -> None:
    members = await world.pool()
    member = await members.lease(0)
    (waiter,) = waiting(members, 1)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 1)
    await world.pools.delete("p")
    with pytest.raises(PoolNotFound):
        await waiter
    members.give_back(member, a_use())  # by the call that still ran
    assert world.resets.done == []
    assert world.count("resetting") == 0


async def test_a_reset_that_runs_ends_with_its_pool(world: World) -> None:
    members = await world.pool()
    world.resets.may_end.clear()
    members.give_back(await members.lease(0), a_use())
    await world.pools.delete("p")
    assert world.sandboxes.records == {}
    assert members._work == set()


async def test_a_replacement_that_is_being_made_ends_with_its_pool(world: World) -> None:
    members = await world.pool()
    world.resets.failures = 1
    world.sandboxes.hold.clear()
    members.give_back(await members.lease(0), a_use())
    await settle(lambda: world.sandboxes.now == 1)
    await world.pools.delete("p")
    assert world.sandboxes.records == {}


async def test_a_deletion_that_fails_can_be_tried_again(world: World) -> None:
    await world.pool(2)
    world.sandboxes.delete_errors.append(EngineUnavailable("unix:///x", "away"))
    with pytest.raises(EngineUnavailable):
        await world.pools.delete("p")
    assert len(world.sandboxes.records) == 1
    with pytest.raises(PoolNotFound):
        await world.pools.run("p", ToolCall("", "python_executor", {}))
    await world.pools.delete("p")
    assert world.sandboxes.records == {}


async def test_a_pool_whose_deletion_failed_can_be_made_anew(world: World) -> None:
    await world.pool(2)
    world.sandboxes.delete_errors.append(EngineUnavailable("unix:///x", "away"))
    with pytest.raises(EngineUnavailable):
        await world.pools.delete("p")
    assert len((await world.pools.initialize(PoolPlan(3), pool_id="p")).sandbox_ids) == 3
    assert len(world.sandboxes.records) == 3


async def test_two_who_delete_a_pool_at_once_delete_it_once(world: World) -> None:
    await world.pool(2)
    results = await asyncio.gather(world.pools.delete("p"), world.pools.delete("p"), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), PoolNotFound]


async def test_a_daemon_that_stops_lends_nothing_and_makes_nothing(world: World) -> None:
    members = await world.pool()
    await members.lease(0)
    (waiter,) = waiting(members, 1)
    await settle(lambda: world.metrics.value("enclaved_pool_waiting") == 1)
    world.pools.close()
    with pytest.raises(ShuttingDown):
        await waiter
    with pytest.raises(ShuttingDown):
        await members.lease(LONG_S)
    with pytest.raises(ShuttingDown):
        await world.pools.initialize(PoolPlan(1))


@pytest.mark.parametrize("wait_s", [-1.0, float("nan"), float("inf")])
async def test_a_time_without_sense_is_refused(world: World, wait_s: float) -> None:
    await world.pool()
    with pytest.raises(InvalidRequest, match="wait_timeout_s"):
        await world.pools.run("p", ToolCall("", "python_executor", {}), wait_s)


async def test_a_call_that_names_a_sandbox_is_refused(world: World) -> None:
    await world.pool()
    with pytest.raises(InvalidRequest, match=r"spec\.sandbox_id: must be empty"):
        await world.pools.run("p", ToolCall("box-1", "python_executor", {}))
