"""The command of a sandbox, its variables, its working directory and its platform, as documented."""

from __future__ import annotations

import asyncio
import platform

import pytest
from ms_enclave._model.events import Channel, Finished, Output
from ms_enclave.errors import EnclaveError, InvalidRequest
from ms_enclave.sandbox.boxes import DockerSandbox

from tests.integration.grants.conftest import House, said

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


async def command_of(sandbox: DockerSandbox) -> str:
    """The execution of a sandbox's command."""
    found = (await sandbox.refresh()).metadata["command_execution_id"]
    assert isinstance(found, str)
    return found


async def ended(sandbox: DockerSandbox) -> tuple[str, str, Finished]:
    """What a sandbox's command said, and how it ended."""
    execution = await sandbox.get_execution(await command_of(sandbox))
    said: dict[Channel, bytes] = {Channel.STDOUT: b"", Channel.STDERR: b""}
    async for event in execution:
        if isinstance(event, Output):
            said[event.channel] += event.data
    assert execution.finished is not None
    return said[Channel.STDOUT].decode().strip(), said[Channel.STDERR].decode().strip(), execution.finished


async def test_a_command_runs_with_the_sandbox_and_its_output_can_be_read(house: House):
    sandbox = await house.sandbox(
        command=["sh", "-c", "echo $GREETING from $(pwd) as $(id -u); echo trouble >&2; exit 3"],
        env_vars={"GREETING": "hello"},
        working_dir="/work",
    )
    output, error, finished = await ended(sandbox)
    info = await sandbox.refresh()
    assert output == f"hello from /work as {info.metadata['uid']}"
    assert (error, finished.exit_code) == ("trouble", 3)
    # Its end ended nothing else.
    assert info.status.value == "running"
    assert await said(sandbox, "echo on") == "on"


async def test_the_next_start_begins_the_command_again(house: House):
    sandbox = await house.sandbox(command="sleep 600")
    first = await command_of(sandbox)
    assert [each.id for each in await sandbox.list_executions(running=True)] == [first]
    await sandbox.stop()
    await sandbox.start()
    second = await command_of(sandbox)
    assert second != first
    assert [each.id for each in await sandbox.list_executions(running=True)] == [second]


async def test_a_command_that_does_not_exist_is_told_by_its_verdict(house: House):
    sandbox = await house.sandbox(command=["/no/such/program"])
    _, _, finished = await ended(sandbox)
    assert finished.exit_code != 0
    assert await said(sandbox, "echo on") == "on"


async def test_a_pool_has_no_command(house: House):
    with pytest.raises(InvalidRequest, match="a pool ends everything"):
        await house.manager.initialize_pool(1, config={"command": "sleep 1"})


async def test_the_engines_own_platform_is_granted_and_another_one_is_not(house: House):
    sandbox = await house.sandbox(platform=f"linux/{MACHINE}")
    assert (await sandbox.refresh()).config["platform"] == f"linux/{MACHINE}"
    with pytest.raises(EnclaveError, match="platform"):
        await house.sandbox(platform="linux/s390x")


async def test_many_sandboxes_with_networks_can_be_made_at_once(house: House):
    made = await asyncio.gather(*(house.sandbox(network_enabled=True) for _ in range(4)))
    assert len({each.id for each in made}) == 4
