"""A daemon that comes after an upgrade: guests of the protocol version before are used, older ones are drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.agent import link
from enclaved.core import draining, leftovers
from enclaved.runtime.base import ContainerPlan
from tests.service.daemons import PATIENCE_S, Running, python
from tests.service.edge import reason
from tests.service.old_guests import old_guest
from tests.service.recovery import (
    AWAITED,
    SLOW,
    WHOLE,
    Engine,
    World,
    followed,
    go,
    has_status,
    info,
    new_world,
    recovered,
    run,
    started,
)


class OldEngine(Engine):
    """Starts guests of an earlier version."""

    guest: Path | None = None

    async def create(self, plan: ContainerPlan) -> str:
        return await super().create(replace(plan, guest_file=self.guest) if self.guest is not None else plan)


class OldWorld(World):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.engine: OldEngine = OldEngine()

    @asynccontextmanager
    async def daemon_before(self, version: int) -> AsyncIterator[Running]:
        """The daemon before the upgrade, with guests of a version."""
        path = self.folder / f"guest-{version}.py"
        path.write_bytes(old_guest(version))
        path.chmod(0o444)
        self.folder.chmod(0o711)
        self.engine.guest = path
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link, "OLDEST_GUEST", version)
            async with self.daemon() as running:
                yield running
        self.engine.guest = None


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OldWorld]:
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    monkeypatch.setattr(draining, "LINGER_S", 0.5)
    async with new_world(OldWorld) as world:
        yield world


async def test_a_guest_of_the_version_before_goes_on_with_all_that_it_knows(world: OldWorld) -> None:
    async with world.daemon_before(1) as first:
        await first.create()
        await run(first, "answer = 6 * 7")
        head = await started(first, python(SLOW, execution_id="run"), 20_000)
    async with world.daemon() as second:
        tail, finished = await followed(second, "run", len(head))
        assert finished.verdict == pb.VERDICT_EXITED
        assert head + tail == WHOLE
        await recovered(second, "adopted", 1)
        assert await run(second, "print(answer)") == "42\n"
        files = file_grpc.FileServiceStub(second.channel)
        await second.create("new")
        assert await run(second, "print('beside it')", "new") == "beside it\n"
        assert "enclaved_sandboxes_drained_total 0.0" in (await second.get("/metrics"))[1]
        # What it does not know it is not asked for.
        for call in (
            second.sandbox_stub.PauseSandbox(sandbox_pb.PauseSandboxRequest(sandbox_id="box")),
            second.sandbox_stub.UpdateSandbox(sandbox_pb.UpdateSandboxRequest(sandbox_id="box", ttl_s=172_800)),
            files.StatFile(file_pb.StatFileRequest(sandbox_id="box", path=".")),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="make a new sandbox") as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason(caught.value) == "WRONG_STATE"
        assert await run(second, "print('works on')") == "works on\n"


async def test_an_older_guest_is_drained_what_runs_ends_and_nothing_new_begins(world: OldWorld) -> None:
    async with world.daemon_before(0) as first:
        await first.create()
        head = await started(first, python(f"{AWAITED}print('to the end')", execution_id="run"), 6)
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        with pytest.raises(grpc.aio.AioRpcError, match="make a new sandbox") as caught:
            await run(second, "print('new')")
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
        assert "enclaved_sandboxes_drained_total 1.0" in (await second.get("/metrics"))[1]
        following = asyncio.create_task(followed(second, "run", len(head)))
        go(world)
        tail, finished = await following
        assert (tail, finished.verdict) == (b"to the end\n", pb.VERDICT_EXITED)
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)
        assert "version 0 of the guest protocol" in found.state_reason
        assert "make a new sandbox" in found.state_reason


async def test_draining_has_a_deadline(world: OldWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "DRAIN_DEADLINE_S", 0.3)
    async with world.daemon_before(0) as first:
        await first.create()
        await started(first, python(AWAITED, execution_id="run", timeout_s=600), 6)
    async with world.daemon() as second:
        _, finished = await followed(second, "run", 6)
        assert finished.verdict == pb.VERDICT_SANDBOX_LOST
        assert (
            "1 executions did not end in time"
            in (await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)).state_reason
        )


async def test_an_old_guest_without_work_is_given_up_at_once(world: OldWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "LINGER_S", PATIENCE_S)
    async with world.daemon_before(0) as first:
        await first.create()
    async with world.daemon() as second:
        await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)


async def test_a_guest_that_is_too_new_is_lost_and_told_why(world: OldWorld) -> None:
    """After a downgrade."""
    async with world.daemon() as first:
        await first.create()
        assert (await info(first)).state == sandbox_pb.Sandbox.STATE_RUNNING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "PROTOCOL_VERSION", 0)
        async with world.daemon() as second:
            found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)
            assert "speaks protocol 1 to 2, and this daemon 0" in found.state_reason


async def test_a_newer_guest_that_still_speaks_our_version_is_adopted(world: OldWorld) -> None:
    async with world.daemon() as first:
        await first.create()
        await run(first, "answer = 6 * 7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "PROTOCOL_VERSION", 1)
        async with world.daemon() as second:
            assert await run(second, "print(answer)") == "42\n"
