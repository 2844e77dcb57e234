"""Objects work from whichever event loop or thread calls them, and without one."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from ms_enclave.sandbox import sync
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    Finished,
    Output,
    SandboxStatus,
    SandboxType,
    Started,
)

SMALL = DockerSandboxConfig(memory_limit="128m")


def run_python(sandbox: Sandbox, code: str) -> str:
    result = asyncio.run(sandbox.execute_tool("python_executor", {"code": code}))
    assert result.success, result.error
    return str(result.output)


def test_a_sandbox_started_in_one_loop_is_used_in_a_second_and_stopped_in_a_third():
    sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, SMALL)
    asyncio.run(sandbox.start())
    try:
        assert run_python(sandbox, "x = 1") == ""
        assert run_python(sandbox, "print(x)") == "1\n"
        asyncio.run(sandbox.stop())
        assert sandbox.status is SandboxStatus.STOPPED
    finally:
        asyncio.run(sandbox.cleanup())


def test_a_manager_started_in_one_loop_is_used_in_a_second_and_stopped_in_a_third():
    manager = LocalSandboxManager()
    asyncio.run(manager.start())
    sandbox_id = asyncio.run(manager.create_sandbox(SandboxType.DOCKER, SMALL))
    result = asyncio.run(manager.execute_tool(sandbox_id, "bash", {"command": "echo second loop"}))
    assert result.output == "second loop\n"
    asyncio.run(manager.stop())
    assert asyncio.run(manager.list_sandboxes()) == []
    assert asyncio.run(manager.get_sandbox_info(sandbox_id)) is None


def test_two_loops_use_one_sandbox_at_the_same_time(sandbox: Sandbox):
    meet = threading.Barrier(2, timeout=30)

    async def use(number: int) -> str:
        await asyncio.to_thread(meet.wait)
        calls = (sandbox.execute_command(f"echo {number}") for _ in range(5))
        return "".join([result.stdout or "" for result in await asyncio.gather(*calls)])

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda number: asyncio.run(use(number)), [1, 2])) == ["1\n" * 5, "2\n" * 5]


async def test_calls_in_one_sandbox_run_at_the_same_time(sandbox: Sandbox):
    """Each waits for the file that the other one makes."""
    meet = "touch {0}; until [ -e {1} ]; do sleep 0.01; done; echo met"
    results = await asyncio.gather(
        sandbox.execute_command(meet.format("left", "right")), sandbox.execute_command(meet.format("right", "left"))
    )
    assert [result.stdout for result in results] == ["met\n", "met\n"]


async def test_a_cancelled_call_is_killed_in_the_sandbox(sandbox: Sandbox):
    began = asyncio.Event()

    async def watch() -> None:
        async for event in sandbox.stream("bash", {"command": "echo begun; sleep 600"}):
            if isinstance(event, Output):
                began.set()

    task = asyncio.create_task(watch())
    async with asyncio.timeout(30):
        await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The guest reports the end of a killed command once all of it is gone, so this waits for that.
    gone = "while grep -qlx sleep /proc/[0-9]*/comm; do :; done; echo gone"
    assert (await sandbox.execute_command(gone, timeout=20)).stdout == "gone\n"


async def test_a_call_can_be_watched_while_it_runs(sandbox: Sandbox):
    events = [event async for event in sandbox.stream("python_executor", {"code": "print('a')\nprint('b')"})]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert b"".join(event.data for event in events if isinstance(event, Output)) == b"a\nb\n"
    assert events[-1].exit_code == 0


class TestWithoutAnEventLoop:
    def test_a_sandbox_in_a_with_block(self):
        with sync.SandboxFactory.create_sandbox(SandboxType.DOCKER, SMALL) as sandbox:
            assert sandbox.status is SandboxStatus.RUNNING
            sandbox.execute_tool("python_executor", {"code": "x = 6"})
            result = sandbox.execute_tool("python_executor", {"code": "print(x * 7)"})
            assert (result.status, result.output) == (ExecutionStatus.SUCCESS, "42\n")
            assert sandbox.execute_command(["echo", "hello"]).stdout == "hello\n"
            sandbox.put_file("note.txt", "text")
            assert sandbox.read_file("note.txt") == b"text"
            events = list(sandbox.stream("bash", {"command": "echo live"}))
            assert [type(event) for event in (events[0], events[-1])] == [Started, Finished]
            with pytest.raises(ValueError, match="not available"):
                sandbox.execute_tool("nope", {})
        assert sandbox.status is SandboxStatus.STOPPED

    def test_a_manager_in_a_with_block(self):
        with sync.LocalSandboxManager() as manager:
            sandbox_id = manager.create_sandbox("docker", SMALL)
            assert manager.execute_tool(sandbox_id, "bash", {"command": "echo hello"}).output == "hello\n"
            sandbox = manager.get_sandbox(sandbox_id)
            assert sandbox is not None
            assert sandbox.execute_command("echo same").stdout == "same\n"
            assert [info.id for info in manager.list_sandboxes()] == [sandbox_id]
            assert manager.delete_sandbox(sandbox_id) is True
            assert manager.get_sandbox_info(sandbox_id) is None

    def test_the_factory_makes_blocking_managers(self):
        with sync.SandboxManagerFactory.create_manager() as manager:
            assert manager.get_stats()["total_sandboxes"] == 0

    def test_threads_may_share_an_object(self, sandbox: Sandbox):
        shared = sync.Sandbox(sandbox)

        def use(number: int) -> str | None:
            return shared.execute_command(f"echo {number}").stdout

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(use, range(8))) == [f"{number}\n" for number in range(8)]

    async def test_it_also_works_where_a_loop_runs(self, sandbox: Sandbox):
        """A notebook has a running loop, and its user calls blocking methods anyway."""
        assert sync.Sandbox(sandbox).execute_command("echo blocking").stdout == "blocking\n"
