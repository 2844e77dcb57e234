"""Containers that somebody removes, kills or pauses behind the daemon's back, in the middle of an execution."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import aiodocker
import pytest
from aiodocker.containers import DockerContainer
from ms_enclave.errors import EnclaveError, WrongState
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import Event, ExecutionStatus, Finished, SandboxStatus, SandboxType, Verdict

from enclaved.runtime.base import LABEL_ID
from tests.integration.failures.ground import PATIENCE_S, DaemonProcess, until

FOREVER = "print('begun', flush=True)\nimport time\ntime.sleep(600)"


@pytest.fixture
async def victim(manager: LocalSandboxManager) -> AsyncIterator[Sandbox]:
    """A running sandbox that may be broken."""
    sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": "128m"}, uuid.uuid4().hex)
    found = await manager.get_sandbox(sandbox_id)
    assert found is not None
    yield found
    await manager.delete_sandbox(sandbox_id)


@pytest.fixture
async def container(victim: Sandbox, engine: aiodocker.Docker) -> DockerContainer:
    """Its container, as anybody with the engine's socket sees it."""
    (found,) = await engine.containers.list(filters={"label": [f"{LABEL_ID}={victim.id}"]})
    return found


async def remove(container: DockerContainer) -> None:
    await container.delete(force=True)


async def kill(container: DockerContainer) -> None:
    await container.kill()


async def stop(container: DockerContainer) -> None:
    await container.stop(t=0)


async def restart(container: DockerContainer) -> None:
    await container.restart(t=0)


@pytest.mark.parametrize("harm", [remove, kill, stop, restart], ids=lambda harm: harm.__name__)
async def test_an_execution_is_told_that_its_sandbox_is_lost(
    victim: Sandbox,
    container: DockerContainer,
    manager: LocalSandboxManager,
    engine: aiodocker.Docker,
    harm: Callable[[DockerContainer], Awaitable[None]],
):
    begun = asyncio.Event()

    async def follow() -> list[Event]:
        events = []
        async for event in victim.stream("python_executor", {"code": FOREVER}):
            events.append(event)
            begun.set()
        return events

    following = asyncio.create_task(follow())
    waiting = asyncio.create_task(victim.execute_tool("bash", {"command": "sleep 600"}))
    uploading = asyncio.create_task(victim.put_file("large", bytes(30_000_000)))
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    await harm(container)
    async with asyncio.timeout(PATIENCE_S):
        result, events = await waiting, await following
        (upload,) = await asyncio.gather(uploading, return_exceptions=True)
    assert (result.status, result.metadata["verdict"]) == (ExecutionStatus.ERROR, "SANDBOX_LOST")
    assert "container" in (result.error or "")
    assert isinstance(events[-1], Finished)
    assert events[-1].verdict is Verdict.SANDBOX_LOST
    assert upload is None or isinstance(upload, EnclaveError), "it was quicker than the harm, or is told"

    info = await manager.get_sandbox_info(victim.id)
    assert info is not None
    assert info.status is SandboxStatus.ERROR
    done = {remove: "removed", kill: "killed", stop: "stopped", restart: "restarted"}[harm]
    assert info.metadata["state_reason"].startswith(f"its container was {done} by somebody else")
    for call in (
        victim.execute_tool("python_executor", {"code": "1"}),
        victim.execute_command("true"),
        victim.read_file("a"),
        victim.start(),
    ):
        with pytest.raises(WrongState, match="delete it"):
            await call
    assert await manager.delete_sandbox(victim.id)
    assert await engine.containers.list(all=True, filters={"label": [f"{LABEL_ID}={victim.id}"]}) == []


async def test_what_somebody_else_changes_is_noticed_and_limits_are_put_back(
    victim: Sandbox, container: DockerContainer, engine: aiodocker.Docker, daemon: DaemonProcess
):
    def noticed(what: str) -> bool:
        lines = [line for line in daemon.text.splitlines() if "somebody else changed a container" in line]
        return any(victim.id in line and f'"{what}"' in line for line in lines)

    before = (await container.show())["HostConfig"]
    await container.rename(f"renamed-{uuid.uuid4().hex}")
    await (await container.exec(["true"], user="65534")).start(detach=True)
    await container.get_archive("/etc/hostname")
    await container.kill(signal="WINCH")
    await engine._query_json(f"containers/{container.id}/update", "POST", data={"PidsLimit": 12345})
    for what in ("renamed", "command_run", "files_copied", "signalled", "limits_changed"):
        await until(lambda what=what: noticed(what), what)
    await until(lambda: "limits put back" in daemon.text, "the limits")
    assert (await container.show())["HostConfig"]["PidsLimit"] == before["PidsLimit"]
    assert (await victim.execute_tool("python_executor", {"code": "print(6 * 7)"})).output == "42\n"


async def test_a_paused_sandbox_is_shown_as_it_is_and_goes_on_afterwards(
    victim: Sandbox, container: DockerContainer, manager: LocalSandboxManager
):
    assert (await victim.execute_tool("python_executor", {"code": "kept = 6"})).success
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint(kept * 7)"
    calling = asyncio.create_task(victim.execute_tool("python_executor", {"code": code}))
    while not (await victim.refresh()).metadata["active_executions"]:
        pass
    await container.pause()
    async with asyncio.timeout(PATIENCE_S):
        while not (info := await manager.get_sandbox_info(victim.id)) or info.status is not SandboxStatus.IDLE:
            pass
    assert not calling.done()
    assert info.metadata["paused"]
    with pytest.raises(WrongState, match="resume it first"):
        await victim.execute_tool("python_executor", {"code": "1"})
    assert "from outside" in info.metadata["state_reason"]
    await container.unpause()
    async with asyncio.timeout(PATIENCE_S):
        while (await victim.refresh()).status is SandboxStatus.IDLE:
            pass
        await victim.execute_command("touch go")
        assert (await calling).output == "42\n"


async def test_a_paused_sandbox_can_be_deleted(
    victim: Sandbox, container: DockerContainer, manager: LocalSandboxManager, engine: aiodocker.Docker
):
    calling = asyncio.create_task(victim.execute_command("sleep 600"))
    async with asyncio.timeout(PATIENCE_S):
        while not (info := await manager.get_sandbox_info(victim.id)) or not info.metadata["active_executions"]:
            pass
        await container.pause()
        assert await manager.delete_sandbox(victim.id)
        result = await calling
    assert result.status is ExecutionStatus.ERROR
    assert "deleted" in result.stderr
    assert await engine.containers.list(all=True, filters={"label": [f"{LABEL_ID}={victim.id}"]}) == []


async def test_a_guest_that_is_stopped_from_outside_costs_only_its_sandbox(
    victim: Sandbox, container: DockerContainer, sandbox: Sandbox
):
    waiting = asyncio.create_task(victim.execute_tool("bash", {"command": "sleep 600"}))
    while not (await victim.refresh()).metadata["active_executions"]:
        pass
    await container.kill(signal="STOP")
    async with asyncio.timeout(PATIENCE_S):
        result = await waiting
    assert result.metadata["verdict"] == "SANDBOX_LOST"
    assert "did not answer" in (result.error or "")
    assert (await sandbox.execute_command("echo unharmed")).stdout == "unharmed\n"


async def test_a_sandbox_is_paused_and_resumed_on_request(victim: Sandbox, container: DockerContainer):
    assert (await victim.execute_tool("python_executor", {"code": "kept = 6"})).success
    await victim.pause()
    assert victim.status is SandboxStatus.IDLE
    assert (await container.show())["State"]["Paused"]
    with pytest.raises(WrongState, match="resume it first"):
        await victim.execute_tool("python_executor", {"code": "print(kept)"})
    await victim.resume()
    assert (await victim.execute_tool("python_executor", {"code": "print(kept * 7)"})).output == "42\n"


async def test_limits_change_while_programs_run(victim: Sandbox, container: DockerContainer):
    assert (await victim.execute_tool("python_executor", {"code": "kept = bytes(40_000_000)"})).success
    await victim.update(memory_limit="512m", cpu_limit=0.5, pids_limit=100, ttl=600)
    limits = (await container.show())["HostConfig"]
    assert [limits[name] for name in ("Memory", "MemorySwap", "NanoCpus", "PidsLimit")] == [
        2**29,
        2**29,
        5 * 10**8,
        100,
    ]
    # More than the limit with which it was made.
    result = await victim.execute_tool("python_executor", {"code": "print(len(kept + bytes(200_000_000)))"})
    assert result.output == "240000000\n"
    await victim.execute_tool("python_executor", {"code": "kept += bytes(200_000_000)"})
    with pytest.raises(EnclaveError):
        await victim.update(memory_limit="128m")
    assert victim.get_info().config["memory_limit"] == "512m"
    assert (await container.show())["HostConfig"]["Memory"] == 2**29
