"""The life of sandboxes over the ends of daemons: what was asked for happens once, and what was begun is finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from ms_enclave.v1 import sandbox_service_pb2 as pb

from enclaved.core import endings, idling, leftovers, updating
from enclaved.core.state import SandboxRow
from enclaved.errors import EngineUnavailable
from enclaved.model import Cause, SandboxSpec, SandboxState, StateChange
from tests.service.daemons import Running
from tests.service.edge import reason
from tests.service.recovery import World, has_status, info, new_world, run, until

Kind = pb.WatchSandboxesResponse


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    for module in (leftovers, endings, updating):
        monkeypatch.setattr(module, "RETRY_S", 0.02)
    async with new_world(World) as world:
        yield world


async def create(running: Running, request_id: str = "4711", **given: Any) -> pb.Sandbox:
    request = pb.CreateSandboxRequest(request_id=request_id, **given)
    return (await running.sandbox_stub.CreateSandbox(request)).sandbox


async def rewrite(world: World, **changes: Any) -> SandboxRow:
    """Changes what is written down of the only sandbox, between two daemons."""
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, **changes))
        return row


def after(row: SandboxRow, *states: SandboxState) -> tuple[StateChange, ...]:
    """A history that goes on."""
    return (*row.history, *(StateChange(datetime.now(UTC), state, "", Cause.REQUEST) for state in states))


async def no_sandboxes(running: Running) -> bool:
    return not (await running.sandbox_stub.ListSandboxes(pb.ListSandboxesRequest())).sandboxes


# -- requests


async def test_a_request_that_is_sent_again_to_the_next_daemon_is_the_same_sandbox(world: World) -> None:
    async with world.daemon() as first:
        made = await create(first)
    async with world.daemon() as second:
        assert (await create(second)).id == made.id
        await second.sandbox_stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=made.id, wait=True))
    async with world.daemon() as third:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(third)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert reason(caught.value) == "REQUEST_ENDED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(third, labels={"a": "b"})
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert world.engine._containers == {}


async def test_a_request_whose_sandbox_was_half_made_makes_it_anew_and_once(world: World) -> None:
    async with world.daemon() as first:
        made = await create(first, sandbox_id="box")
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        half = replace(row, state=SandboxState.INITIALIZING, container_id=None, history=row.history[:1])
        state.sandboxes.save(half)
    async with world.daemon() as second:
        again = await asyncio.gather(*(create(second, sandbox_id="box") for _ in range(3)))
        assert {one.id for one in again} == {"box"}
        assert again[0].create_time.ToDatetime() > made.create_time.ToDatetime()
        assert await run(second, "print(6 * 7)") == "42\n"
        assert len(world.engine._containers) == 1


# -- changes


async def test_a_watch_goes_on_at_the_next_daemon_without_a_gap(world: World) -> None:
    async with world.daemon() as first:
        listed = await first.sandbox_stub.ListSandboxes(pb.ListSandboxesRequest())
        await create(first, sandbox_id="box")
        watch = first.sandbox_stub.WatchSandboxes(pb.WatchSandboxesRequest(revision=listed.revision))
        bookmark, created = await watch.read(), await watch.read()
        assert (bookmark.kind, bookmark.revision) == (Kind.KIND_BOOKMARK, listed.revision)
        assert (created.kind, created.sandbox.state) == (Kind.KIND_CREATED, pb.Sandbox.STATE_INITIALIZING)
        watch.cancel()
    async with world.daemon() as second:
        await second.sandbox_stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="box", wait=True))
        watch = second.sandbox_stub.WatchSandboxes(pb.WatchSandboxesRequest(revision=created.revision))
        found = [await watch.read() for _ in range(4)]
        assert [(one.kind, one.sandbox.state) for one in found[1:]] == [
            (Kind.KIND_CHANGED, pb.Sandbox.STATE_RUNNING),
            (Kind.KIND_CHANGED, pb.Sandbox.STATE_DELETING),
            (Kind.KIND_DELETED, pb.Sandbox.STATE_DELETING),
        ]
        assert [one.matches for one in found] == [False, True, True, False]
        watch.cancel()
        gone = second.sandbox_stub.WatchSandboxes(pb.WatchSandboxesRequest(revision=found[-1].revision + 10**6))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gone.read()
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert reason(caught.value) == "REVISION_GONE"


async def test_a_history_outlives_the_daemon(world: World) -> None:
    async with world.daemon() as first:
        await create(first, sandbox_id="box")
        await first.sandbox_stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="box"))
    async with world.daemon() as second:
        found = (await second.sandbox_stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="box"))).history
    states = pb.Sandbox
    assert [(one.state, one.cause) for one in found] == [
        (state, pb.StateChange.CAUSE_REQUEST)
        for state in (states.STATE_INITIALIZING, states.STATE_RUNNING, states.STATE_STOPPING, states.STATE_STOPPED)
    ]
    assert found[-1].reason == "stopped on request"


# -- deletions


async def test_a_deletion_is_finished_by_the_next_daemon_once_there_is_an_engine(world: World) -> None:
    async with world.daemon() as first:
        await create(first, sandbox_id="box")
    await rewrite(world, state=SandboxState.DELETING)
    world.engine.away = True
    async with world.daemon() as second:
        found = await info(second)
        assert found.state == pb.Sandbox.STATE_DELETING
        creating = asyncio.create_task(create(second, "4712", sandbox_id="box"))
        await asyncio.sleep(0)
        assert not creating.done()
        world.engine.away = False
        assert (await creating).id == "box"
        assert len(world.engine._containers) == 1


async def test_a_deletion_without_an_engine_is_answered_at_once_and_kills_what_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as running:
        await create(running, sandbox_id="box")
        (container,) = world.engine._containers.values()
        remove = world.engine.remove
        away = True

        async def refuse(container_id: str) -> None:
            if away:
                raise EngineUnavailable("subprocess", "it sleeps")
            await remove(container_id)

        monkeypatch.setattr(world.engine, "remove", refuse)
        await running.sandbox_stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="box"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.sandbox_stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="box", wait=True))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        found = await info(running)
        assert (found.state, found.state_reason.startswith("deleted on request; it cannot be removed yet")) == (
            pb.Sandbox.STATE_DELETING,
            True,
        )
        away = False
        await until(lambda: no_sandboxes(running))
        assert world.engine._containers == {}
        assert container.process is not None


# -- stops, starts, limits


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_a_stop_is_finished_by_the_next_daemon(world: World, remove_on_exit: bool) -> None:
    async with world.daemon() as first:
        await create(first, sandbox_id="box", spec=pb.SandboxSpec(remove_on_exit=remove_on_exit))
        await run(first, "open('kept', 'w').write('yes')")
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, state=SandboxState.STOPPING, history=after(row, SandboxState.STOPPING)))
    async with world.daemon() as second:
        await has_status(second, pb.Sandbox.STATE_STOPPED)
        assert len(world.engine._containers) == (0 if remove_on_exit else 1)
        await second.sandbox_stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="box"))
        kept = await run(second, "import os; print(os.path.exists('kept'))")
        assert kept == f"{not remove_on_exit}\n"


async def test_a_start_that_was_cut_leaves_it_stopped(world: World) -> None:
    async with world.daemon() as first:
        await create(first, sandbox_id="box")
        await first.sandbox_stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="box"))
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        half = replace(row, state=SandboxState.INITIALIZING, history=after(row, SandboxState.INITIALIZING))
        state.sandboxes.save(half)
    async with world.daemon() as second:
        found = await info(second)
        assert found.state == pb.Sandbox.STATE_STOPPED
        assert found.state_reason == "the daemon was killed while it was started again"
        await second.sandbox_stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="box"))
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_limits_that_the_engine_may_not_have_heard_of_are_brought_by_the_next_daemon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as first:
        await create(first, sandbox_id="box")
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, spec=replace(row.spec, pids_limit=99), limits_due=True))
    heard: list[SandboxSpec] = []
    failures = 2

    async def update(container_id: str, spec: SandboxSpec) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise EngineUnavailable("subprocess", "it sleeps")
        heard.append(spec)

    monkeypatch.setattr(world.engine, "update", update)
    async with world.daemon() as second:

        async def is_heard() -> bool:
            return bool(heard)

        await until(is_heard)
        assert (await info(second)).spec.pids_limit == 99
    assert heard[0].pids_limit == 99
    async with world.state() as state:
        assert [row.limits_due for row in state.sandboxes.load()] == [False]


async def test_an_update_that_the_engine_did_not_answer_is_taken_back_there_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    async def update(container_id: str, spec: SandboxSpec) -> None:
        heard.append(spec.pids_limit)
        if len(heard) == 1:  # it did what was asked, and its answer was lost
            raise EngineUnavailable("subprocess", "it sleeps")

    async with world.daemon() as running:
        before = (await create(running, sandbox_id="box")).spec.pids_limit
        monkeypatch.setattr(world.engine, "update", update)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.sandbox_stub.UpdateSandbox(pb.UpdateSandboxRequest(sandbox_id="box", pids_limit=99))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        async def is_settled() -> bool:
            return heard == [99, before]

        await until(is_settled)
        assert (await info(running)).spec.pids_limit == before


async def test_an_idle_timeout_goes_on_over_the_end_of_a_daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idling, "RETURN_GRACE_S", 0.1)
    async with world.daemon() as first:
        made = await create(first, sandbox_id="box", spec=pb.SandboxSpec(idle_timeout_s=3600))
        assert made.spec.idle_timeout_s == 3600
        assert made.HasField("last_use_time")
    row = await rewrite(world)
    async with world.state() as state:
        state.sandboxes.save(replace(row, used_monotonic_s=row.used_monotonic_s - 7200))
    async with world.daemon() as second:
        watch = second.sandbox_stub.WatchSandboxes(pb.WatchSandboxesRequest(revision=made.revision))
        async for change in watch:
            if change.sandbox.state == pb.Sandbox.STATE_DELETING:
                assert change.cause == pb.StateChange.CAUSE_IDLE
                break
        await until(lambda: no_sandboxes(second))
