"""The blocking face: the same names, no second implementation."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
from ms_enclave import errors
from ms_enclave.sandbox import boxes, manager, sync
from ms_enclave.sandbox._portal import Portal
from ms_enclave.sandbox.model import DockerSandboxConfig, Finished, SandboxStatus, SandboxType, Started
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from tests.unit.sdk.fake_daemon import FakeDaemon, exited
from tests.unit.sdk.test_boxes import Hello


def test_a_sandbox_is_used_without_an_event_loop(daemon: FakeDaemon) -> None:
    config = DockerSandboxConfig(tools_config=["python_executor"])
    with sync.SandboxFactory.create_sandbox(SandboxType.DOCKER, config, "box") as sandbox:
        assert (sandbox.id, sandbox.status, sandbox.sandbox_type) == ("box", SandboxStatus.RUNNING, SandboxType.DOCKER)
        assert sandbox.execute_tool("python_executor", {"code": "x"}).output == "x"
        assert sandbox.execute_command("ls", timeout=5).stdout == "ls"
        sandbox.put_file("a", "b")
        assert sandbox.read_file("a") == b"b"
        assert sandbox.list_tools() == ["python_executor"]
        assert list(sandbox.get_available_tools()) == ["python_executor"]
        assert sandbox.get_info().config == sandbox.refresh().config
        assert sandbox.config is config
        assert "error" not in sandbox.metadata
        sandbox.add_tool(Hello(name="hello"))
        assert sandbox.execute_tool("hello").success
        assert sandbox.get_tool("hello") is not None
        with pytest.raises(errors.ToolNotFound):
            sandbox.execute_tool("nope", {})
    assert daemon.sandboxes == {}


def test_a_manager_is_used_without_an_event_loop(daemon: FakeDaemon) -> None:
    with sync.LocalSandboxManager(cleanup_interval=600) as found:
        made = found.create_sandbox("docker")
        assert found.config.cleanup_interval == 600
        assert [info.id for info in found.list_sandboxes()] == [made]
        assert found.execute_tool(made, "python_executor", {"code": "x"}).output == "x"
        sandbox = found.get_sandbox(made)
        assert isinstance(sandbox, sync.Sandbox)
        assert sandbox.execute_tool("python_executor", {"code": "y"}).output == "y"
        assert found.get_sandbox("nope") is None
        assert found.get_stats()["total_sandboxes"] == 1
    assert daemon.sandboxes == {}
    assert isinstance(sync.SandboxManagerFactory.create_manager().wrapped, manager.LocalSandboxManager)


def test_a_stream_is_a_loop(daemon: FakeDaemon) -> None:
    started = execution_pb.ExecutionEvent(started=execution_pb.Started())
    daemon.events = [[started, execution_pb.ExecutionEvent(finished=exited())], [started]]
    with sync.SandboxFactory.create_sandbox("docker") as sandbox:
        assert [type(event) for event in sandbox.stream("python_executor", {"code": "1"})] == [Started, Finished]
        daemon.endless = True
        for _event in sandbox.stream("python_executor", {"code": "1"}):
            break
    assert daemon.cancel_seen.wait(10)


def test_many_threads_may_use_one_object(daemon: FakeDaemon) -> None:
    outputs: list[Any] = []
    with sync.SandboxFactory.create_sandbox("docker") as sandbox:

        def use(word: str) -> None:
            outputs.extend([sandbox.execute_tool("python_executor", {"code": word}).output for _ in range(5)])

        threads = [threading.Thread(target=use, args=(word,)) for word in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(outputs) == sorted("abcd" * 5)


async def test_it_may_be_called_where_another_loop_runs(daemon: FakeDaemon) -> None:
    with sync.SandboxFactory.create_sandbox("docker") as sandbox:
        assert sandbox.execute_tool("python_executor", {"code": "x"}).success


def test_ctrl_c_cancels_what_runs(daemon: FakeDaemon) -> None:
    daemon.programs["1"] = daemon.until_cancelled

    def interrupt() -> None:
        daemon.running.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    with sync.SandboxFactory.create_sandbox("docker") as sandbox:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.execute_tool("python_executor", {"code": "1"})
        assert len(daemon.cancelled) == 1


@pytest.mark.parametrize(
    ("face", "wrapped"), [(sync.Sandbox, boxes.Sandbox), (sync.SandboxManager, manager.SandboxManager)]
)
def test_no_method_is_forgotten(face: type, wrapped: type) -> None:
    methods = {name for name, value in vars(wrapped).items() if not name.startswith("_") and inspect.isroutine(value)}
    internal = {"update_status", "transport"}
    assert methods - internal - set(dir(face)) == set()


def test_methods_keep_their_descriptions() -> None:
    assert sync.Sandbox.start.__doc__ == boxes.Sandbox.start.__doc__
    assert sync.SandboxFactory.create_sandbox("docker").execute_tool.__name__ == "execute_tool"


def test_a_portal_can_be_closed_and_used_again() -> None:
    portal = Portal()

    async def answer() -> int:
        return 42

    for _ in range(2):
        assert portal.run(answer()) == 42
        portal.close()
        portal.close()


def test_a_portal_refuses_what_would_wait_for_itself() -> None:
    portal = Portal()

    async def inner() -> None: ...

    async def outer() -> None:
        portal.run(inner())

    with pytest.raises(RuntimeError, match="use the async classes"):
        portal.run(outer())
    portal.close()


def test_closing_a_portal_cancels_what_still_runs() -> None:
    portal = Portal()
    begun, cancelled = threading.Event(), threading.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def use() -> None:
        with pytest.raises(CancelledError):
            portal.run(endless())

    thread = threading.Thread(target=use)
    thread.start()
    begun.wait(10)
    portal.close()
    thread.join(10)
    assert cancelled.is_set()
    assert not thread.is_alive()
