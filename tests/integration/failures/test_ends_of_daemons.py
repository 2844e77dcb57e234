"""A daemon that is killed, one that is told to stop while it works, and clients that are killed under it."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiodocker
import grpc
import pytest
from grpc import aio
from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved.core.ownership import Ownership
from enclaved.runtime.base import LABEL_HMAC, LABEL_ID, LABEL_OWNER, LABEL_UID
from tests.conftest import DEFAULT_IMAGE
from tests.integration.failures.ground import PATIENCE_S, Ground, Stubs, until
from tests.service.daemons import python
from tests.service.edge import reason

SMALL = {"memory_limit": "128m"}
LATER = "import time; print('begun', flush=True); time.sleep(3); print('ended')"
FOREVER = "import time; print('begun', flush=True); time.sleep(600)"


async def code(manager: LocalSandboxManager, sandbox_id: str, text: str) -> str:
    return str((await manager.execute_tool(sandbox_id, "python_executor", {"code": text})).output)


# -- killed ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def strangers(engine: aiodocker.Docker, ground: Ground) -> AsyncIterator[list[str]]:
    """Containers that are not the daemon's: one without labels, and two that imitate its own."""
    owner = Ownership.of(_made(ground)).owner
    imitated = {LABEL_ID: "box", LABEL_OWNER: owner, LABEL_UID: "1900000001"}
    found = []
    try:
        for labels in ({}, imitated, {**imitated, LABEL_HMAC: "0" * 64}):
            body = {
                "Image": DEFAULT_IMAGE,
                "Entrypoint": ["sleep", "600"],
                "Labels": labels,
                "HostConfig": {"NetworkMode": "none"},
            }
            container = await engine.containers.run(body, name=f"stranger-{uuid.uuid4().hex}")
            found.append(container.id)
        yield found
    finally:
        for container_id in found:
            await engine.containers.container(container_id).delete(force=True)


def _made(ground: Ground) -> Any:
    state_dir = ground.folder / "e"
    state_dir.mkdir(mode=0o700, exist_ok=True)
    return state_dir


async def test_the_sandboxes_of_a_killed_daemon_are_the_next_one_s_and_strangers_stay(
    ground: Ground, engine: aiodocker.Docker, strangers: list[str]
):
    daemon = await ground.daemon()
    other = await ground.daemon(name="other")
    manager = LocalSandboxManager(address=daemon.address)
    neighbour = LocalSandboxManager(address=other.address)
    await asyncio.gather(*(manager.create_sandbox(SandboxType.DOCKER, SMALL, name) for name in ("a", "b")))
    kept = await neighbour.create_sandbox(SandboxType.DOCKER, SMALL, "a")
    await code(manager, "b", "answer = 6 * 7")
    running = asyncio.create_task(manager.execute_tool("a", "python_executor", {"code": LATER}))
    await _runs(manager, "a")
    before = set(ground.containers())
    assert len(before - set(strangers)) == 3

    daemon.kill()
    again = await ground.daemon()
    assert (await running).output == "begun\nended\n"
    assert await code(manager, "b", "print(answer)") == "42\n"
    assert "a container imitates our labels" in again.text
    assert set(ground.containers()) == before
    await manager.stop()
    for container_id in strangers:
        state = (await engine.containers.container(container_id).show())["State"]
        assert state["Running"], "it was not the daemon's to touch"
    assert await code(neighbour, kept, "print(6 * 7)") == "42\n"
    await neighbour.stop()
    again.send(signal.SIGTERM)
    assert await again.ended() == 0
    assert list((ground.folder / "e" / "s").iterdir()) == []
    again.check_log()


async def _runs(manager: LocalSandboxManager, sandbox_id: str) -> None:
    """Waits until an execution runs in a sandbox."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            info = await manager.get_sandbox_info(sandbox_id)
            if info is not None and info.metadata["active_executions"]:
                return


async def test_a_sandbox_whose_daemon_was_killed_in_the_making_of_it_is_removed_as_well(ground: Ground):
    daemon = await ground.daemon()
    manager = LocalSandboxManager(address=daemon.address)
    making = [asyncio.create_task(manager.create_sandbox(SandboxType.DOCKER, SMALL)) for _ in range(4)]
    await until(ground.containers, "a first container")
    daemon.kill()
    again = await ground.daemon()
    # Attempts that the new daemon served have succeeded; nothing else is there.
    made = await asyncio.gather(*making, return_exceptions=True)
    assert all(isinstance(one, str | EnclaveError) for one in made)
    live = sum(isinstance(one, str) for one in made)
    await until(lambda: len(ground.containers()) == live, f"no more than {live} containers")
    await manager.stop()
    assert ground.containers() == []
    again.check_log()


# -- told to stop ------------------------------------------------------------------------------------------------


async def test_a_daemon_that_is_told_to_stop_lets_short_calls_finish_and_removes_the_long_ones(ground: Ground):
    daemon = await ground.daemon("--daemon-drain-grace-s", "2")
    manager = LocalSandboxManager(address=daemon.address)
    for name in ("short", "long"):
        await manager.create_sandbox(SandboxType.DOCKER, SMALL, name)
    async with aio.insecure_channel(daemon.address) as channel:
        stubs = Stubs(channel)
        short = stubs.executions.Execute()
        await short.write(execution_pb.ExecuteRequest(start=python("print(input())", "short", stdin=True)))
        long = stubs.executions.Execute()
        await long.write(execution_pb.ExecuteRequest(start=python(FOREVER, "long")))
        for call in (short, long):
            assert (await call.read()).event.HasField("started")

        daemon.send(signal.SIGTERM)
        await daemon.says('"draining"')
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.executions.Run(execution_pb.RunRequest(spec=python("print(1)", "short")))
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")

        await short.write(execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=b"finished in time\n")))
        assert (await short.read()).event.output.data == b"finished in time\n"
        assert (await short.read()).event.finished.verdict == execution_pb.VERDICT_EXITED

        assert (await long.read()).event.output.data == b"begun\n"
        assert (await long.read()).event.finished.verdict == execution_pb.VERDICT_SANDBOX_LOST
    assert await daemon.ended() == 0
    assert '"calls outlast the grace"' in daemon.text
    assert ground.containers() == []
    assert list((ground.folder / "e" / "s").iterdir()) == []
    daemon.check_log()


async def test_a_second_signal_does_not_wait_for_anything(ground: Ground):
    daemon = await ground.daemon("--daemon-drain-grace-s", "600")
    manager = LocalSandboxManager(address=daemon.address)
    sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
    running = asyncio.create_task(manager.execute_tool(sandbox_id, "python_executor", {"code": FOREVER}))
    await _runs(manager, sandbox_id)
    daemon.send(signal.SIGINT)
    await daemon.says('"draining"')
    daemon.send(signal.SIGINT)
    assert await daemon.ended() == 0
    result = await running
    assert result.metadata["verdict"] == "SANDBOX_LOST"
    assert ground.containers() == []


# -- clients -----------------------------------------------------------------------------------------------------

A_CLIENT = """
import asyncio, sys
from ms_enclave.sandbox.manager import LocalSandboxManager

async def main():
    manager = LocalSandboxManager()
    sandbox_id = await manager.create_sandbox("docker", {"memory_limit": "128m"}, "of-a-client")
    sandbox = await manager.get_sandbox(sandbox_id)
    code = "print('begun', flush=True); import time; time.sleep(600)"
    async for event in sandbox.stream("python_executor", {"code": code}):
        print(event, flush=True)

asyncio.run(main())
"""


async def test_a_client_that_is_killed_detaches_and_others_find_its_sandbox(ground: Ground):
    daemon = await ground.daemon()
    client = ground.program(A_CLIENT, MS_ENCLAVE_ADDRESS=daemon.address)
    await client.says("begun")
    client.kill()
    async with LocalSandboxManager(address=daemon.address) as manager:
        info = await manager.get_sandbox_info("of-a-client")
        assert info is not None
        assert info.metadata["active_executions"] == 1, "it goes on for its detach grace"
        result = await manager.execute_tool("of-a-client", "bash", {"command": "echo still here"})
        assert result.output == "still here\n"
        assert await manager.delete_sandbox("of-a-client")
    assert ground.containers() == []
    assert ground.embedded_directories() == []
    daemon.check_log()


async def test_what_a_killed_client_left_is_cancelled_after_the_grace_that_it_set(ground: Ground):
    daemon = await ground.daemon()
    async with LocalSandboxManager(address=daemon.address) as manager:
        sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
        async with aio.insecure_channel(daemon.address) as channel:
            call = Stubs(channel).executions.Execute()
            spec = python(FOREVER, sandbox_id, execution_id="left", detach_grace_s=0)
            await call.write(execution_pb.ExecuteRequest(start=spec))
            await call.read()
        async with aio.insecure_channel(daemon.address) as channel:
            following = Stubs(channel).executions.Attach(execution_pb.AttachRequest(execution_id="left", observe=True))
            events = [answer.event async for answer in following]
        assert events[-1].finished.verdict == execution_pb.VERDICT_CANCELLED
        assert await code(manager, sandbox_id, "print(6 * 7)") == "42\n"
    daemon.check_log()
