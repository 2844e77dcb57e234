"""Lives of sandboxes at a real engine: made once, ended when nobody uses them, deleted for certain."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing

import pytest
from ms_enclave import errors
from ms_enclave._transports.base import SandboxPlan
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.model import Cause, DockerSandboxConfig, SandboxEventKind, SandboxFilter, SandboxStatus

from tests.integration.failures.ground import Ground

PATIENCE_S = 120.0


def config(**changes: object) -> DockerSandboxConfig:
    return DockerSandboxConfig.model_validate({"memory_limit": "128m", **changes})


async def test_creations_that_a_killed_daemon_cuts_off_are_made_once(ground: Ground) -> None:
    daemon = await ground.daemon()
    transport = GrpcTransport(daemon.address)
    await transport.health()  # who has reached a daemon before waits longer for the next one
    async with asyncio.timeout(PATIENCE_S), aclosing(transport.lifecycle.watch(SandboxFilter())) as events:
        await anext(events)
        calls = [
            asyncio.create_task(transport.create_sandbox(SandboxPlan(f"box-{number}", config(), None)))
            for number in range(3)
        ]
        async for event in events:
            if event.kind is SandboxEventKind.CREATED:
                break
        daemon.send(signal.SIGKILL)
        await daemon.ended()
        daemon = await ground.daemon()
        made = await asyncio.gather(*calls)
        assert sorted(info.id for info in made) == ["box-0", "box-1", "box-2"]
        found = await transport.lifecycle.find(SandboxFilter(statuses=[SandboxStatus.RUNNING]))
        assert sorted(info.id for info in found.sandboxes) == ["box-0", "box-1", "box-2"]
        for info in made:
            await transport.delete_sandbox(info.id, wait=False)
        async for event in events:
            if event.kind is SandboxEventKind.DELETED and not await transport.list_sandboxes({}):
                break


async def test_one_that_nobody_uses_is_removed_and_one_at_work_is_not(ground: Ground) -> None:
    transport = GrpcTransport((await ground.daemon()).address)
    sandbox = DockerSandbox(config(resource_limits={"idle_timeout": 2}))
    sandbox.use(transport, {})
    async with asyncio.timeout(PATIENCE_S), aclosing(transport.lifecycle.watch(SandboxFilter())) as events:
        await anext(events)
        await sandbox.start()
        result = await sandbox.execute_tool("bash", {"command": "sleep 4; echo worked"})
        assert result.output == "worked\n"
        async for event in events:
            if event.info is not None and event.info.status is SandboxStatus.STOPPING:
                assert event.cause is Cause.IDLE
            if event.kind is SandboxEventKind.DELETED:
                break
        with pytest.raises(errors.SandboxNotFound):
            await sandbox.refresh()


async def test_a_stopped_one_is_started_again_with_its_files_and_its_new_limits(ground: Ground) -> None:
    sandbox = DockerSandbox(config(remove_on_exit=False))
    daemon = await ground.daemon()
    sandbox.use(GrpcTransport(daemon.address), {})
    await sandbox.start()
    await sandbox.execute_tool("bash", {"command": "echo kept > file"})
    await sandbox.stop()
    await sandbox.update(pids_limit=77)
    daemon.send(signal.SIGKILL)
    await daemon.ended()
    await ground.daemon()
    async with asyncio.timeout(PATIENCE_S):
        await sandbox.start()
        assert (await sandbox.execute_tool("bash", {"command": "cat file"})).output == "kept\n"
    assert sandbox.get_info().config["resource_limits"]["pids_limit"] == 77
    assert [change.status.value for change in await sandbox.history()] == [
        *("initializing", "running", "stopping", "stopped", "running")
    ]
    await sandbox.cleanup()
