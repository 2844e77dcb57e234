"""The life of sandboxes over the wire, and over the deaths of daemons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as pb

from enclaved.core import watching
from tests.service.daemons import Running
from tests.service.edge import reason
from tests.service.recovery import World, has_status, info, new_world, recovered, run


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(watching, "PAUSED_STATUS_EVERY_S", 0.05)
    async with new_world(World) as world:
        yield world


async def pause(running: Running) -> pb.Sandbox:
    return (await running.sandbox_stub.PauseSandbox(pb.PauseSandboxRequest(sandbox_id="box"))).sandbox


async def resume(running: Running) -> pb.Sandbox:
    return (await running.sandbox_stub.ResumeSandbox(pb.ResumeSandboxRequest(sandbox_id="box"))).sandbox


# -- pause and resume


async def test_a_pause_survives_the_daemon_and_its_sandbox_goes_on_afterwards(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        await run(first, "kept = 6")
        assert (await pause(first)).state == pb.Sandbox.STATE_PAUSED
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        found = await info(second)
        assert (found.state, found.state_reason) == (pb.Sandbox.STATE_PAUSED, "paused on request")
        with pytest.raises(grpc.aio.AioRpcError, match="resume it first") as caught:
            await run(second, "print(kept)")
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
        assert (await resume(second)).state == pb.Sandbox.STATE_RUNNING
        assert await run(second, "print(kept * 7)") == "42\n"


async def test_what_was_paused_or_resumed_while_there_was_no_daemon_is_shown_as_it_is(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    (container_id,) = world.engine._containers
    await world.engine.pause(container_id)
    async with world.daemon() as second:
        found = await has_status(second, pb.Sandbox.STATE_PAUSED)
        assert "from outside" in found.state_reason
    await world.engine.unpause(container_id)
    async with world.daemon() as third:
        await has_status(third, pb.Sandbox.STATE_RUNNING)
        assert await run(third, "print('on')") == "on\n"


async def test_a_paused_sandbox_is_deleted_by_the_next_daemon(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        await pause(first)
    async with world.daemon() as second:
        await second.sandbox_stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="box"))
        assert not world.engine._containers


async def test_a_member_of_a_pool_is_not_paused(world: World) -> None:

    async with world.daemon() as running:
        channel: Any = running.channel
        pools: Any = pool_grpc.PoolServiceStub(channel)
        answer = await pools.InitializePool(pool_pb.InitializePoolRequest(pool_id="pool", size=1))
        with pytest.raises(grpc.aio.AioRpcError, match="member of pool"):
            await running.sandbox_stub.PauseSandbox(pb.PauseSandboxRequest(sandbox_id=answer.sandbox_ids[0]))


# -- changes


async def test_what_was_changed_survives_the_daemon(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        changes = pb.UpdateSandboxRequest(sandbox_id="box", ttl_s=600, labels=pb.Labels(labels={"a": "b"}), cpu_limit=2)
        changed = (await first.sandbox_stub.UpdateSandbox(changes)).sandbox
        assert 599 < changed.expire_time.seconds - changed.create_time.seconds < 660
    async with world.daemon() as second:
        found = await info(second)
        assert (found.expire_time, dict(found.labels), found.spec.cpu_limit) == (changed.expire_time, {"a": "b"}, 2.0)
