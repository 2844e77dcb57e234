"""The life of a sandbox: ``start``, ``stop``, ``cleanup``, ``async with``, and what is kept between them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from ms_enclave.errors import SandboxExists, SandboxNotFound, WrongState
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    Finished,
    Output,
    SandboxInfo,
    SandboxStatus,
    SandboxType,
    Verdict,
)

MARK = "open('mark', 'w').write('here'); variable = 1"
LOOK = "import os\nprint(os.path.exists('mark'), 'variable' in globals())"


def a_sandbox(sandbox_id: str | None = None, **settings: Any) -> Sandbox:
    config = DockerSandboxConfig(**{"memory_limit": "128m", **settings})
    return SandboxFactory.create_sandbox(SandboxType.DOCKER, config, sandbox_id)


async def python(sandbox: Sandbox, code: str) -> str:
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.success, result.error
    return str(result.output)


async def test_async_with_starts_and_removes():
    before = datetime.now()
    sandbox = a_sandbox()
    assert (sandbox.status, sandbox.sandbox_type) == (SandboxStatus.INITIALIZING, SandboxType.DOCKER)
    async with sandbox as entered:
        assert entered is sandbox
        assert sandbox.status is SandboxStatus.RUNNING
        assert before <= sandbox.created_at <= sandbox.updated_at <= datetime.now()
        info = sandbox.get_info()
        assert isinstance(info, SandboxInfo)
        assert (info.id, info.status, info.type) == (sandbox.id, sandbox.status, sandbox.sandbox_type)
        assert info.available_tools == sandbox.get_available_tools()
        context = await sandbox.get_execution_context()
        assert (context.sandbox_id, context.working_dir) == (sandbox.id, "/sandbox")
    assert sandbox.status is SandboxStatus.STOPPED
    with pytest.raises(SandboxNotFound):
        await sandbox.refresh()


async def test_a_sandbox_that_is_left_by_an_error_is_removed_as_well():
    sandbox = a_sandbox()
    with pytest.raises(ZeroDivisionError):
        async with sandbox:
            raise ZeroDivisionError
    with pytest.raises(SandboxNotFound):
        await sandbox.refresh()


async def test_a_sandbox_does_nothing_before_it_is_started():
    sandbox = a_sandbox()
    with pytest.raises(WrongState, match=r"not active .* call start\(\) first"):
        await sandbox.execute_tool("python_executor", {"code": "1"})
    with pytest.raises(ValueError, match=r"call start\(\) first"):
        await sandbox.execute_command("true")
    with pytest.raises(ValueError, match=r"call start\(\) first"):
        await sandbox.put_file("a", "b")
    await sandbox.stop()
    await sandbox.cleanup()
    assert sandbox.status is SandboxStatus.STOPPED


async def test_start_again_gives_the_same_id_an_empty_sandbox():
    sandbox = a_sandbox("starts-again")
    await sandbox.start()
    try:
        await python(sandbox, MARK)
        await sandbox.stop()
        assert sandbox.status is SandboxStatus.STOPPED
        with pytest.raises(WrongState):
            await sandbox.execute_command("true")
        await sandbox.start()
        assert (sandbox.id, sandbox.status) == ("starts-again", SandboxStatus.RUNNING)
        assert await python(sandbox, LOOK) == "False False\n"
    finally:
        await sandbox.cleanup()


async def test_a_sandbox_that_is_not_removed_on_exit_keeps_its_files_and_nothing_else():
    sandbox = a_sandbox(remove_on_exit=False)
    try:
        async with sandbox:
            await python(sandbox, MARK)
            await sandbox.execute_command("sleep 600 & sleep 600", timeout=0.2)
        assert (await sandbox.refresh()).status is SandboxStatus.STOPPED
        with pytest.raises(WrongState):
            await sandbox.execute_tool("python_executor", {"code": "1"})
        await sandbox.start()
        assert await python(sandbox, LOOK) == "True False\n"
        assert (await sandbox.execute_command("grep -lx sleep /proc/[0-9]*/comm")).stdout == ""
        await sandbox.cleanup()
        await sandbox.start()
        assert await python(sandbox, LOOK) == "False False\n"
    finally:
        await sandbox.cleanup()


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_start_stop_and_cleanup_can_be_called_twice(remove_on_exit: bool):
    sandbox = a_sandbox(remove_on_exit=remove_on_exit)
    await sandbox.start()
    await sandbox.start()
    assert await python(sandbox, "print('runs')") == "runs\n"
    await sandbox.stop()
    await sandbox.stop()
    await sandbox.cleanup()
    await sandbox.cleanup()
    assert sandbox.status is SandboxStatus.STOPPED


async def test_stop_kills_what_runs_at_once_and_the_verdict_says_so():
    sandbox = a_sandbox()
    await sandbox.start()
    try:
        verdicts = []
        async for event in sandbox.stream("shell_executor", {"command": "trap '' TERM; echo deaf; sleep 600"}):
            match event:
                case Output():
                    await sandbox.stop()
                case Finished():
                    verdicts.append(event.verdict)
        assert verdicts == [Verdict.SANDBOX_LOST]
    finally:
        await sandbox.cleanup()


async def test_an_id_names_one_sandbox():
    async with a_sandbox("only-one") as sandbox:
        with pytest.raises(SandboxExists, match="only-one"):
            await a_sandbox("only-one").start()
        assert await python(sandbox, "print('unharmed')") == "unharmed\n"


@pytest.mark.parametrize("sandbox_id", ["Upper", "../etc", "a b", "-first", "x" * 64, "new\nline"])
async def test_an_id_that_could_be_something_else_is_refused(sandbox_id: str):
    with pytest.raises(ValueError, match="is no id: it must match"):
        await a_sandbox(sandbox_id).start()
