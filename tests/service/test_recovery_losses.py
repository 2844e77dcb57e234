"""A daemon that comes after another: what did not live on, or whose engine or guest is away, is told or waited for."""

from __future__ import annotations

import os
import signal as signals
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core import leftovers, watching
from enclaved.core.ownership import Ownership
from enclaved.model import SandboxState
from enclaved.runtime.base import ContainerPlan
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import python
from tests.service.recovery import SLOW, World, followed, has_status, info, new_world, recovered, run, started, until


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(World) as world:
        yield world


async def test_a_sandbox_that_died_meanwhile_is_lost_with_its_executions(world: World) -> None:
    async with world.daemon() as first:
        await first.create("dead")
        await first.create("gone")
        await started(first, python(SLOW, "dead", execution_id="run"))
    dead, gone = world.engine._containers
    process = world.engine._containers[dead].process
    assert process is not None
    process.kill()
    await process.wait()
    await SubprocessRuntime.remove(world.engine, gone)
    async with world.daemon() as second:
        _, finished = await followed(second, "run")
        assert finished.verdict == pb.VERDICT_SANDBOX_LOST
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "dead")
        assert found.state_reason.startswith("its container ended with code")
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "gone")
        assert found.state_reason == "its container was removed by somebody else"
        await recovered(second, "lost", 2)
    async with world.daemon() as third:
        assert (await info(third, "dead")).state == sandbox_pb.Sandbox.STATE_ERROR
        _, finished = await followed(third, "run")
        assert finished.verdict == pb.VERDICT_SANDBOX_LOST


async def test_a_sandbox_whose_time_came_meanwhile_is_removed(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, expires_monotonic_s=row.expires_monotonic_s - row.spec.ttl_s))
    async with world.daemon() as second:

        async def is_gone() -> bool:
            return not (await second.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())).sandboxes

        await until(is_gone)
    assert world.engine._containers == {}


async def test_half_made_and_half_deleted_sandboxes_are_removed(world: World) -> None:
    async with world.daemon() as first:
        await first.create("half-made")
        await first.create("half-deleted")
    async with world.state() as state:
        for row, half in zip(state.sandboxes.load(), (SandboxState.INITIALIZING, SandboxState.DELETING), strict=True):
            state.sandboxes.save(replace(row, state=half, container_id=None, history=row.history[:1]))
    async with world.daemon() as second:
        await recovered(second, "removed", 2)
        assert world.engine._containers == {}
        assert list((world.state_dir / "s").iterdir()) == []
    async with world.state() as state:
        assert state.sandboxes.load() == []


async def test_a_container_that_nobody_wrote_down_is_removed_and_what_is_not_ours_stays(world: World) -> None:
    async with world.daemon() as first:
        await first.create("forgotten")
        await first.create("kept")
    (forgotten, plan), _ = ((name, found.plan) for name, found in world.engine._containers.items())
    async with world.state() as state:
        state.sandboxes.forget("forgotten", 1)
    foreign = await world.engine.create(_labelled(plan, Ownership(b"somebody else")))
    async with world.daemon() as second:
        await world.engine.has_not(forgotten)
        assert await run(second, "print(6 * 7)", "kept") == "42\n"
    assert foreign in world.engine._containers


def _labelled(plan: ContainerPlan, ownership: Ownership) -> ContainerPlan:
    return replace(plan, labels=ownership.labels("forgotten", 1))


async def test_what_runs_and_was_not_written_down_is_ended(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        await started(first, python("import time; print('begun', flush=True); time.sleep(600)", execution_id="run"), 6)
    async with world.state() as state:
        state.executions.forget("run")
    async with world.daemon() as second:
        assert await run(second, "print(6 * 7)") == "42\n"  # it waits for the context until the stranger is ended
        with pytest.raises(grpc.aio.AioRpcError, match="not found"):
            await followed(second, "run")


async def test_a_guest_that_does_not_come_back_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 0.05)
    monkeypatch.setattr(watching, "STATUS_EVERY_S", 0.05)
    monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 0.2)
    async with world.daemon() as first:
        await first.create()
    (container,) = world.engine._containers.values()
    assert container.process is not None
    os.killpg(container.process.pid, signals.SIGSTOP)
    async with world.daemon() as second:
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)
        assert found.state_reason == "its guest did not come back within 0.2 s of the daemon's return"


async def test_a_paused_container_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 0.01)
    monkeypatch.setattr(watching, "STATUS_EVERY_S", 0.01)
    monkeypatch.setattr(watching, "PAUSED_STATUS_EVERY_S", 0.01)
    monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 0.0)
    async with world.daemon() as first:
        await first.create()
    (container,) = world.engine._containers.values()
    assert container.process is not None
    os.killpg(container.process.pid, signals.SIGSTOP)
    world.engine.paused = True
    async with world.daemon() as second:

        async def was_asked_often() -> bool:
            return world.engine.looks > 20

        await until(was_asked_often)
        assert (await info(second)).state == sandbox_pb.Sandbox.STATE_PAUSED
        monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 60.0)
        monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 60.0)
        world.engine.paused = False  # else a later look would find it paused again
        os.killpg(container.process.pid, signals.SIGCONT)
        await recovered(second, "adopted", 1)
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_a_daemon_that_cannot_listen_yet_tries_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LISTEN_RETRY_S", 0.02)
    async with world.daemon() as first:
        await first.create()
    (directory,) = (world.state_dir / "s").iterdir()
    place, aside = directory / "socket", directory / "aside"
    place.rename(aside)
    place.touch()
    async with world.daemon() as second:
        with pytest.raises(grpc.aio.AioRpcError, match="reconnecting"):
            await second.execution_stub.Run(pb.RunRequest(spec=python("pass")))
        place.unlink()
        aside.rename(place)
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_without_an_engine_the_living_are_taken_up_and_the_dead_are_not_given_up(world: World) -> None:
    async with world.daemon() as first:
        await first.create("living")
        await first.create("dead")
        await run(first, "answer = 6 * 7", "living")
    process = list(world.engine._containers.values())[1].process
    assert process is not None
    process.kill()
    await process.wait()
    world.engine.away = True
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        assert await run(second, "print(answer)", "living") == "42\n"
        assert (await info(second, "dead")).state == sandbox_pb.Sandbox.STATE_RUNNING
        world.engine.away = False
        await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "dead")
