"""What a sandbox does, in the order in which a newcomer asks. Readable as an example; runs on a real Docker engine.

pytest tests/test_sandbox.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionStatus, SandboxStatus, SandboxType

pytestmark = pytest.mark.docker


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox of its own for each test. It is gone after the test, however that ends."""
    config = DockerSandboxConfig(
        image="python:3.11-slim",
        memory_limit="256m",
        timeout=10,
        tools_config={"python_executor": {}, "shell_executor": {}, "file_operation": {}},
    )
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as made:
        yield made


async def test_python_runs_in_the_sandbox(sandbox: Sandbox):
    result = await sandbox.execute_tool("python_executor", {"code": "print('Hello from sandbox!')"})
    assert result.status == ExecutionStatus.SUCCESS
    assert result.output == "Hello from sandbox!\n"
    assert result.error is None


async def test_variables_are_kept_between_calls(sandbox: Sandbox):
    await sandbox.execute_tool("python_executor", {"code": "numbers = [1, 2, 3]"})
    result = await sandbox.execute_tool("python_executor", {"code": "print(sum(numbers))"})
    assert result.output == "6\n"


async def test_a_failed_program_is_a_result_and_not_an_exception(sandbox: Sandbox):
    result = await sandbox.execute_tool("python_executor", {"code": "1 / 0"})
    assert result.status == ExecutionStatus.ERROR
    assert "ZeroDivisionError: division by zero" in (result.error or "")
    assert result.metadata["verdict"] == "EXCEPTION"


async def test_a_program_that_never_ends_meets_its_timeout(sandbox: Sandbox):
    result = await sandbox.execute_tool("python_executor", {"code": "while True: pass", "timeout": 0.5})
    assert result.status == ExecutionStatus.TIMEOUT
    assert result.error == "Command timed out after 0.5 seconds"


async def test_a_program_that_takes_all_memory_is_killed_and_the_sandbox_goes_on(sandbox: Sandbox):
    greedy = {"code": "hoard = bytearray(10**9)", "isolated": True}
    result = await sandbox.execute_tool("python_executor", greedy)
    assert result.metadata["verdict"] == "OUT_OF_MEMORY"
    assert (await sandbox.execute_tool("python_executor", {"code": "print('alive')"})).output == "alive\n"


async def test_shell_commands_run_too(sandbox: Sandbox):
    result = await sandbox.execute_tool("bash", {"command": "echo $((6 * 7)) | tr 4 2"})
    assert result.output == "22\n"
    failed = await sandbox.execute_command("exit 3")
    assert (failed.exit_code, failed.status) == (3, ExecutionStatus.ERROR)


async def test_files_go_in_and_out(sandbox: Sandbox):
    note = {"operation": "write", "file_path": "notes/today.txt", "content": "It's a file.\n"}
    assert (await sandbox.execute_tool("file_operation", note)).success
    assert await sandbox.read_file("notes/today.txt") == b"It's a file.\n"


async def test_tools_describe_themselves_for_a_language_model(sandbox: Sandbox):
    tools = sandbox.get_available_tools()
    assert set(tools) == {"python_executor", "shell_executor", "file_operation"}
    assert tools["python_executor"]["function"]["parameters"]["required"] == ["code"]


async def test_an_unknown_tool_is_a_value_error(sandbox: Sandbox):
    with pytest.raises(ValueError, match="nope is not available"):
        await sandbox.execute_tool("nope", {})


async def test_a_program_cannot_reach_the_network_or_change_the_system(sandbox: Sandbox):
    code = """
import os, socket
print([name for _, name in socket.if_nameindex()])
for attempt in (
    lambda: open("/etc/passwd", "a"),
    lambda: os.setuid(0),
    lambda: os.kill(1, 9),
):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
"""
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.output.splitlines() == [
        "['lo']",
        "Permission denied",
        "Operation not permitted",
        "Operation not permitted",
    ]


async def test_a_sandbox_is_gone_when_it_is_left():
    sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="128m"))
    assert sandbox.status == SandboxStatus.INITIALIZING
    async with sandbox:
        assert sandbox.status == SandboxStatus.RUNNING
    assert sandbox.status == SandboxStatus.STOPPED


async def test_a_manager_keeps_many_sandboxes_and_removes_them_at_its_end():
    config = DockerSandboxConfig(memory_limit="128m")
    async with LocalSandboxManager() as manager:
        ids = await asyncio.gather(*(manager.create_sandbox(SandboxType.DOCKER, config) for _ in range(3)))
        calls = [manager.execute_tool(one, "bash", {"command": f"echo {number}"}) for number, one in enumerate(ids)]
        assert [result.output for result in await asyncio.gather(*calls)] == ["0\n", "1\n", "2\n"]
        assert {info.id for info in await manager.list_sandboxes(SandboxStatus.RUNNING)} == set(ids)
    assert [await manager.get_sandbox_info(one) for one in ids] == [None, None, None]


def test_objects_may_be_used_across_several_event_loops():
    sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="128m"))
    asyncio.run(sandbox.start())
    try:
        asyncio.run(sandbox.execute_tool("python_executor", {"code": "x = 1"}))
        assert asyncio.run(sandbox.execute_tool("python_executor", {"code": "print(x)"})).output == "1\n"
    finally:
        asyncio.run(sandbox.cleanup())
