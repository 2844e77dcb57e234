"""Pools outlive the daemon: members are taken up, and none is lent before it was shown to be as new."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.config.pools import PoolSettings
from enclaved.core import leftovers
from tests.service.daemons import Running, daemon, settings_in
from tests.service.edge import reason
from tests.service.recovery import World, new_world, until

CUT = (aio.AioRpcError, asyncio.CancelledError)
"""What a call meets whose daemon goes, or whose channel is closed first."""


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(World) as world:
        yield world


def pools_of(running: Running) -> Any:
    return pool_grpc.PoolServiceStub(running.channel)  # type: ignore[no-untyped-call]


async def make(running: Running, size: int = 2, **options: Any) -> list[str]:
    request = pool_pb.InitializePoolRequest(pool_id="p", size=size, options=pool_pb.PoolOptions(**options))
    return list((await pools_of(running).InitializePool(request)).sandbox_ids)


async def shell(running: Running, command: str, **spec: Any) -> pool_pb.RunInPoolResponse:
    wanted = pb.ExecutionSpec(tool="shell_executor", parameters_json=json.dumps({"command": command}), **spec)
    answer: pool_pb.RunInPoolResponse = await pools_of(running).RunInPool(
        pool_pb.RunInPoolRequest(pool_id="p", spec=wanted), wait_for_ready=True
    )
    return answer


async def show(running: Running) -> pool_pb.Pool:
    pool: pool_pb.Pool = (await pools_of(running).GetPool(pool_pb.GetPoolRequest(pool_id="p"))).pool
    return pool


async def is_busy(running: Running) -> bool:
    return (await show(running)).members[0].state == pool_pb.PoolMember.STATE_BUSY


async def none_left(running: Running) -> bool:
    return not await sandboxes(running)


async def all_idle(running: Running) -> pool_pb.Pool:
    while True:
        pool = await show(running)
        if all(member.state == pool_pb.PoolMember.STATE_IDLE for member in pool.members):
            return pool
        await asyncio.sleep(0.01)


async def test_a_pool_goes_on_with_its_members_under_the_next_daemon(world: World) -> None:
    async with world.daemon() as running:
        members = await make(running)
        await shell(running, "touch left")
        before = await all_idle(running)
    async with world.daemon() as running:
        after = await all_idle(running)
        assert [member.sandbox_id for member in after.members] == members
        assert (after.size, after.create_time, after.origin) == (2, before.create_time, pool_pb.Pool.ORIGIN_CALLER)
        assert after.counters.replaced == 0
        answers = [await shell(running, "ls -A") for _ in range(2)]
        assert {answer.sandbox_id for answer in answers} <= set(members)
        assert [answer.run.stdout for answer in answers] == [b"", b""]


async def test_a_run_that_was_cut_is_found_by_its_id_and_its_member_is_reset(world: World) -> None:
    async with world.daemon(daemon__drain_grace_s="0") as running:
        (member,) = await make(running, 1)
        cut = asyncio.create_task(shell(running, "touch left; sleep 1; echo done", execution_id="cut"))
        await until(lambda: is_busy(running))
    with pytest.raises(CUT):
        await cut
    async with world.daemon() as running:
        again = await shell(running, "touch left; sleep 1; echo done", execution_id="cut")
        assert (again.run.stdout, again.sandbox_id) == (b"done\n", member)
        assert (await shell(running, "ls -A")).run.stdout == b""


async def test_a_run_that_nobody_can_ask_for_ends_with_its_daemon(world: World) -> None:
    async with world.daemon(daemon__drain_grace_s="0") as running:
        await make(running, 1)
        cut = asyncio.create_task(shell(running, "touch left; sleep 600", timeout_s=900.0))
        await until(lambda: is_busy(running))
    with pytest.raises(CUT):
        await cut
    async with world.daemon() as running:
        assert (await shell(running, "ls -A")).run.stdout == b""


async def test_a_member_that_was_lost_meanwhile_is_made_anew_under_its_id(world: World) -> None:
    async with world.daemon() as running:
        members = await make(running)
    for container_id in list(world.engine._containers)[:1]:
        await world.engine.remove(container_id)
    async with world.daemon() as running:
        pool = await all_idle(running)
        assert [member.sandbox_id for member in pool.members] == members
        assert pool.counters.replaced == 1


async def test_a_member_that_was_half_made_is_removed_and_its_place_filled(world: World) -> None:
    async with world.daemon() as running:
        members = await make(running)
    async with world.state() as state:  # as if it had been killed before it wrote the second one down
        state.pools.forget_member("p", 1)
    async with world.daemon() as running:
        pool = await all_idle(running)
        assert len(pool.members) == 2
        assert pool.members[0].sandbox_id == members[0]

        async def is_gone() -> bool:
            return members[1] not in [sandbox.id for sandbox in await sandboxes(running)]

        await until(is_gone)


async def test_a_pool_of_which_nobody_was_told_is_removed(world: World) -> None:
    async with world.daemon() as running:
        await make(running)
    async with world.state() as state:
        (row,) = state.pools.load()
        state.pools.save(type(row)(row.id, row.origin, row.plan, False, row.created_at))
    async with world.daemon() as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await show(running)
        assert reason(caught.value) == "POOL_NOT_FOUND"
        await until(lambda: none_left(running))


async def test_a_deletion_that_a_daemon_began_is_finished_by_the_next(world: World) -> None:
    async with world.daemon() as running:
        await make(running)
        claimed = (await pools_of(running).Claim(pool_pb.ClaimRequest(pool_id="p"))).sandbox.id
        await all_idle(running)
    async with world.state() as state:
        (row,) = state.pools.load()
        state.pools.save(replace(row, deleting=True))
    async with world.daemon() as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await show(running)
        assert reason(caught.value) == "POOL_NOT_FOUND"

        async def only_the_claimed_one() -> bool:
            return [sandbox.id for sandbox in await sandboxes(running)] == [claimed]

        await until(only_the_claimed_one)
    async with world.state() as state:
        assert state.pools.load() == []


async def test_a_claimed_sandbox_stays_its_owners_and_asking_again_finds_it(world: World) -> None:
    claim = pool_pb.ClaimRequest(pool_id="p", ttl_s=600.0, labels={"mine": "1"}, request_id="once")
    async with world.daemon() as running:
        members = await make(running)
        first = (await pools_of(running).Claim(claim)).sandbox
        assert first.id in members
        await all_idle(running)
    async with world.daemon() as running:
        again = (await pools_of(running).Claim(claim)).sandbox
        assert (again.id, dict(again.labels)) == (first.id, {"mine": "1"})
        pool = await all_idle(running)
        assert first.id not in [member.sandbox_id for member in pool.members]
        assert len(pool.members) == 2


async def test_leases_are_there_for_the_next_daemon_and_go_on_counting(world: World) -> None:
    async with world.daemon() as running:
        await make(running, 1)
        await shell(running, "true", execution_id="first")
        await all_idle(running)
    async with world.daemon() as running:
        await shell(running, "false", execution_id="second")
        await all_idle(running)
        leases = (await pools_of(running).ListLeases(pool_pb.ListLeasesRequest(pool_id="p"))).leases
    assert [(lease.number, lease.execution_id) for lease in leases] == [(2, "second"), (1, "first")]
    assert all(lease.outcome == pool_pb.Lease.OUTCOME_CLEAN for lease in leases)


async def test_a_pool_ends_with_a_daemon_that_keeps_nothing(world: World) -> None:
    async with world.daemon(daemon__keep_sandboxes_on_stop="false") as running:
        await make(running)
    async with world.state() as state:
        assert (state.pools.load(), state.pools.load_members()) == ([], [])


async def test_the_operators_pools_follow_the_configuration_from_start_to_start(world: World) -> None:
    base = settings_in(world.folder, daemon__keep_sandboxes_on_stop="true")
    two = base.model_copy(update={"pools": (PoolSettings(id="p", size=2),)})
    async with daemon(two, runtime=world.engine) as running:
        first = await all_idle(running)
        assert (first.origin, len(first.members)) == (pool_pb.Pool.ORIGIN_OPERATOR, 2)
        with pytest.raises(aio.AioRpcError) as caught:
            await pools_of(running).DeletePool(pool_pb.DeletePoolRequest(pool_id="p"))
        assert reason(caught.value) == "POLICY_DENIED"
    three = base.model_copy(update={"pools": (PoolSettings(id="p", size=3),)})
    async with daemon(three, runtime=world.engine) as running:
        pool = await all_idle(running)
        assert [member.sandbox_id for member in pool.members[:2]] == [member.sandbox_id for member in first.members]
        assert len(pool.members) == 3
    async with daemon(base, runtime=world.engine) as running:
        await until(lambda: none_left(running))
        assert not (await pools_of(running).ListPools(pool_pb.ListPoolsRequest())).pools


async def test_a_pool_that_cannot_be_made_disturbs_no_other_and_says_why(world: World) -> None:
    pools = (PoolSettings(id="p", size=1), PoolSettings(id="bad", size=1, image="no-such-image"))
    settings = settings_in(world.folder).model_copy(update={"pools": pools, "bad_pools": ("pools[2]: nonsense",)})
    async with daemon(settings, runtime=world.engine) as running:
        assert (await shell(running, "echo fine")).run.stdout == b"fine\n"

        async def troubled() -> Any:
            found = await pools_of(running).ListPools(pool_pb.ListPoolsRequest())
            return found if found.pools[1].trouble else None

        listed = await until(troubled)
        assert "no-such-image" in listed.pools[1].trouble
        assert listed.pools[0].trouble == ""
        _, text = await running.get("/metrics")
        assert "\nenclaved_pools_troubled 1.0\n" in text
        assert "\nenclaved_pools_refused 1.0\n" in text


async def sandboxes(running: Running) -> list[sandbox_pb.Sandbox]:
    answer = await running.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())
    return list(answer.sandboxes)
