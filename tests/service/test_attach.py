"""A daemon that attaches to its guests instead of letting them connect: all is as over the socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb

from enclaved.core import boot, leftovers
from enclaved.errors import EngineRefused
from enclaved.runtime.base import ContainerPlan
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service import recovery, test_recovery
from tests.service.daemons import Running, daemon, python, settings_in, short_directory
from tests.service.recovery import World, new_world, run, started, until


class AttachedWorld(World):
    """Its daemons attach to their guests."""

    @asynccontextmanager
    async def daemon(self, **flags: str) -> AsyncIterator[Running]:
        async with super().daemon(engine__channel="attach", **flags) as running:
            yield running


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(AttachedWorld) as world:
        yield world


SURVIVALS = (
    test_recovery.test_output_that_a_daemon_was_killed_in_is_whole,
    test_recovery.test_the_variables_of_a_context_are_there_for_the_next_daemon,
    test_recovery.test_input_goes_on_at_its_offset,
    test_recovery.test_the_same_id_does_not_run_twice,
    test_recovery.test_a_sandbox_survives_any_number_of_daemons,
    test_recovery.test_stopped_sandboxes_stay_stopped_with_their_files,
)


@pytest.mark.parametrize("survival", SURVIVALS, ids=lambda survival: survival.__name__.removeprefix("test_"))
async def test_what_survives_a_daemon_survives_it_here(
    world: World, survival: Callable[[World], Awaitable[None]]
) -> None:
    await survival(world)


async def test_nothing_of_the_host_is_mounted_and_no_socket_is_made(world: World) -> None:
    async with world.daemon() as running:
        await running.create()
        (container,) = world.engine._containers.values()
        assert container.plan.guest_arguments
        assert not container.plan.socket_dir.exists()
        assert (await running.system_stub.GetInfo(system_pb.GetInfoRequest())).engine.channel == "attach"
        assert 'enclaved_engine_channel{channel="attach"} 1.0' in (await running.get("/metrics"))[1]


async def test_a_program_cannot_reach_the_stream(world: World) -> None:
    """The descriptors of PID 1 and of all that waits for work, by number and by name, and whatever is inherited."""
    code = """
import os
found = []
for pid in (name for name in os.listdir("/proc") if name.isdigit()):
    for fd in ("0", "1", "3", "4", "5", "6"):
        try:
            os.close(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR))
        except OSError:
            continue
        status = open(f"/proc/{pid}/status").read()
        if f"Uid:\\t{os.getuid()}\\t" not in status:
            found.append((pid, fd))
print(found, os.getuid() != 0)
"""
    async with world.daemon() as running:
        await running.create()
        assert await run(running, code) == "[] True\n"
        shell = json.dumps({"command": "echo forged >/proc/1/fd/1; cat </proc/1/fd/0; kill -9 1; echo $?"})
        spec = pb.ExecutionSpec(sandbox_id="box", tool="shell_executor", parameters_json=shell)
        answer = await running.execution_stub.Run(pb.RunRequest(spec=spec))
        assert answer.stderr.count(b"ermi") >= 2
        assert answer.stdout == b"1\n"
        assert await run(running, "print('still there')") == "still there\n"


async def test_a_paused_sandbox_goes_on_where_it_was(world: World) -> None:
    async with world.daemon() as running:
        await running.create()
        await run(running, "answer = 6 * 7")
        await running.sandbox_stub.PauseSandbox(sandbox_pb.PauseSandboxRequest(sandbox_id="box"))
        await running.sandbox_stub.ResumeSandbox(sandbox_pb.ResumeSandboxRequest(sandbox_id="box"))
        assert await run(running, "print(answer)") == "42\n"


async def test_bytes_that_are_no_frames_end_nothing_but_the_stream(world: World) -> None:
    """As if an engine had mixed up its streams: the daemon drops this attach and comes again."""
    async with world.daemon() as running:
        await running.create()
        head = await started(running, python(recovery.SLOW, execution_id="run"), 20_000)
        (container,) = world.engine._containers.values()
        for noise in (b"\xff" * 100, b"\x00" * 7, os.urandom(5000)):
            await until(lambda: _has_channel(container))
            await container.channels[0].push(noise)
        tail, finished = await recovery.followed(running, "run", len(head))
        assert finished.verdict == pb.VERDICT_EXITED
        assert head + tail == recovery.WHOLE


async def _has_channel(container: Any) -> bool:
    return bool(container.channels)


async def test_an_attach_that_breaks_again_and_again_loses_nothing(world: World) -> None:
    async with world.daemon() as running:
        await running.create()
        head = await started(running, python(recovery.SLOW, execution_id="run"), 5_000)
        (container,) = world.engine._containers.values()

        async def break_it() -> None:
            for _ in range(10):
                await until(lambda: _has_channel(container))
                container.channels[0].close()
                await asyncio.sleep(0)

        breaking = asyncio.create_task(break_it())
        tail, _ = await recovery.followed(running, "run", len(head))
        await breaking
        assert head + tail == recovery.WHOLE


# -- which channel it is


class Blind(SubprocessRuntime):
    """An engine that does not see our files."""

    tried = 0

    async def create(self, plan: ContainerPlan) -> str:
        if not plan.guest_arguments:
            self.tried += 1
            raise EngineRefused("create a container", "bind source path does not exist", files_unseen=True)
        return await super().create(plan)


class Deaf(SubprocessRuntime):
    """An engine that shows our files to sandboxes, and no sockets."""

    async def create(self, plan: ContainerPlan) -> str:
        if not plan.guest_arguments:
            (plan.socket_dir / "agent.sock").unlink()
        return await super().create(plan)


async def test_the_first_sandbox_shows_an_engine_that_does_not_see_our_files() -> None:
    engine = Blind()
    async with short_directory() as folder, daemon(settings_in(folder), runtime=engine) as running:
        assert (await running.system_stub.GetInfo(system_pb.GetInfoRequest())).engine.channel == ""
        await running.create()
        assert await run(running, "print('reached')") == "reached\n"
        await running.create("second")
        assert engine.tried == 1
        assert (await running.system_stub.GetInfo(system_pb.GetInfoRequest())).engine.channel == "attach"
        assert 'enclaved_engine_channel{channel="attach"} 1.0' in (await running.get("/metrics"))[1]


async def test_the_first_guest_says_that_it_finds_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "CONNECT_PATIENCE_S", 0.1)
    async with short_directory() as folder, daemon(settings_in(folder), runtime=Deaf()) as running:
        await running.create()
        assert await run(running, "print('reached')") == "reached\n"
        assert (await running.system_stub.GetInfo(system_pb.GetInfoRequest())).engine.channel == "attach"


async def test_where_the_socket_is_configured_it_stays_the_socket() -> None:
    async with (
        short_directory() as folder,
        daemon(settings_in(folder, engine__channel="socket"), runtime=Blind()) as running,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="bind source path does not exist"):
            await running.create()


async def test_sandboxes_keep_their_channel_when_the_setting_changes(world: World) -> None:
    async with world.daemon() as first:
        await first.create("attached")
    async with World.daemon(world, engine__channel="socket") as second:
        await second.create("connected")
        for name in ("attached", "connected"):
            assert await run(second, f"print({name!r})", name) == f"{name}\n"
    async with world.daemon() as third:
        for name in ("attached", "connected"):
            assert await run(third, f"print({name!r})", name) == f"{name}\n"
        assert [len(c.channels) for c in world.engine._containers.values()] == [1, 0]
