"""Pools of managers: one that is theirs at a daemon, or the one of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from ms_enclave import errors
from ms_enclave.sandbox import sync
from ms_enclave.sandbox.manager import HttpSandboxManager, LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxManagerConfig
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, result
from tests.unit.sdk.fake_server import FakeServer, served

PYTHON = DockerSandboxConfig(tools_config={"python_executor": {}}, timeout=7)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with served(FakeServer()) as running:
        yield running


async def test_a_pool_runs_tools_and_ends_with_its_manager(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        assert not manager._pool_initialized
        ids = await manager.initialize_pool(2, "docker", PYTHON)
        assert manager._pool_initialized
        assert sorted(daemon.sandboxes) == sorted(ids)
        assert await manager.initialize_pool(5) == ids
        found = await manager.execute_tool_in_pool("python_executor", {"code": "x"}, timeout=3)
        assert (found.output, found.tool_name) == ("x", "python_executor")
        (request,) = daemon.asked(pool_pb.RunInPoolRequest)
        assert (request.wait_timeout_s, request.spec.sandbox_id) == (3, "")
        assert request.spec.execution_id
    assert (daemon.sandboxes, daemon.pools, manager._pool_initialized) == ({}, {}, False)
    await manager.stop()


async def test_members_are_listed_as_idle_and_can_be_reached(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        made = await manager.create_sandbox("docker")
        (member,) = await manager.initialize_pool(1)
        daemon.sandboxes[member].active_executions = 1
        assert {info.id: info.status.value for info in await manager.list_sandboxes()} == {
            made: "running",
            member: "busy",
        }
        daemon.sandboxes[member].active_executions = 0
        stats = await manager.get_stats()
        assert stats["status_counts"] == {"running": 1, "idle": 1}
        assert (stats["total_sandboxes"], stats["pool_size"], stats["pool_initialized"]) == (2, 1, True)
        sandbox = await manager.get_sandbox(member)
        assert sandbox is not None
        assert sandbox.id == member
        del daemon.sandboxes[member]
        assert await manager.get_sandbox(member) is None


async def test_before_there_is_a_pool_a_call_is_an_error(daemon: FakeDaemon, server: FakeServer) -> None:
    async with LocalSandboxManager() as local, HttpSandboxManager(base_url=server.url) as http:
        for manager in (local, http):
            with pytest.raises(ValueError, match="Sandbox pool is empty, call initialize_pool first") as caught:
                await manager.execute_tool_in_pool("python_executor", {"code": "x"})
            assert isinstance(caught.value, errors.PoolNotFound)


async def test_a_size_that_is_none_is_refused(daemon: FakeDaemon, server: FakeServer) -> None:
    async with LocalSandboxManager() as local, HttpSandboxManager(base_url=server.url) as http:
        for manager in (local, http):
            for size in (None, 0, -1, True, 1.5):
                with pytest.raises(ValueError, match="pool_size"):
                    await manager.initialize_pool(size)  # type: ignore[arg-type]
            assert not manager._pool_initialized


async def test_when_no_member_is_free_in_time_that_is_a_timeout(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        await manager.initialize_pool(1)
        text = "no member was free within 2 seconds"
        daemon.refusals["RunInPool"].append(Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "POOL_BUSY", text))
        with pytest.raises(TimeoutError, match="no member was free"):
            await manager.execute_tool_in_pool("python_executor", {"code": "x"}, timeout=2)
        for timeout in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="timeout"):
                await manager.execute_tool_in_pool("python_executor", {"code": "x"}, timeout=timeout)


async def test_a_pool_that_is_gone_is_named(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        await manager.initialize_pool(1)
        daemon.pools.clear()
        with pytest.raises(ValueError, match=r"pool .* not found; initialize it first"):
            await manager.execute_tool_in_pool("python_executor", {"code": "x"})
        daemon.refusals["DeletePool"].append(Refusal(grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND", "gone"))


async def test_what_a_tool_refuses_is_a_failed_result(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        await manager.initialize_pool(1)
        finished = execution_pb.Finished(verdict=execution_pb.VERDICT_EXITED, exit_code=3)
        daemon.programs["fail"] = result(stderr=b"no\n", finished=finished)
        found = await manager.execute_tool_in_pool("shell_executor", {"command": "fail"})
        assert found.error == "no\nCommand failed with exit code 3"


async def test_settings_with_a_size_and_a_configuration_make_the_pool_at_the_start(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager(SandboxManagerConfig(pool_size=2, sandbox_config=PYTHON)) as manager:
        assert manager._pool_initialized
        assert len(daemon.sandboxes) == 2
    async with LocalSandboxManager(pool_size=2) as manager:
        assert not manager._pool_initialized
        assert len(await manager.initialize_pool(config={"memory_limit": "1g"})) == 2


async def test_cancelling_a_caller_cancels_its_execution(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        await manager.initialize_pool(1)
        daemon.programs["for ever"] = daemon.until_cancelled
        task = asyncio.create_task(manager.execute_tool_in_pool("python_executor", {"code": "for ever"}))
        assert await asyncio.to_thread(daemon.running.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(daemon.cancel_seen.wait, 20)


async def test_the_pool_of_a_server_serves_others_and_stays(server: FakeServer) -> None:
    async with HttpSandboxManager(base_url=server.url) as first, HttpSandboxManager(base_url=server.url) as second:
        ids = await first.initialize_pool(2, "docker", PYTHON)
        found = await second.execute_tool_in_pool("python_executor", {"code": "x"}, timeout=9)
        assert found.output == "x"
        assert server.requests[-1][1] == "/pool/execute?tool_name=python_executor&timeout=9"
    assert server.pool == ids


def test_without_an_event_loop_it_is_the_same(daemon: FakeDaemon, server: FakeServer) -> None:
    for manager in (sync.LocalSandboxManager(), sync.HttpSandboxManager(base_url=server.url)):
        with manager:
            assert len(manager.initialize_pool(1, "docker", PYTHON)) == 1
            assert manager.execute_tool_in_pool("python_executor", {"code": "x"}).output == "x"


async def test_a_claimed_sandbox_that_cannot_be_looked_at_is_deleted(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        (member,) = await manager.initialize_pool(1)
        daemon.refusals["ListTools"].append(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "no"))
        with pytest.raises(errors.InvalidRequest):
            await manager.claim()
        assert member not in daemon.sandboxes
        assert manager._sandboxes == {}
