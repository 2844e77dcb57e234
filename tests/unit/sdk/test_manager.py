"""Managers: many sandboxes by id, from any event loop, and none left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.manager import LocalSandboxManager, SandboxManager, SandboxManagerFactory
from ms_enclave.sandbox.manager.base import register_manager
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
)
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from pydantic import ValidationError

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, guest_unavailable
from tests.unit.sdk.test_boxes import Hello

PYTHON = DockerSandboxConfig(tools_config={"python_executor": {}})


async def test_a_manager_makes_sandboxes_and_removes_them_at_its_end(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        ids = [await manager.create_sandbox(SandboxType.DOCKER, PYTHON) for _ in range(3)]
        assert [info.id for info in await manager.list_sandboxes()] == ids
        assert (await manager.execute_tool(ids[0], "python_executor", {"code": "x"})).output == "x"
        assert list(await manager.get_sandbox_tools(ids[1])) == ["python_executor"]
    assert daemon.sandboxes == {}
    await manager.stop()


def test_a_manager_may_live_in_three_event_loops(daemon: FakeDaemon) -> None:
    manager = LocalSandboxManager()
    asyncio.run(manager.start())
    made = asyncio.run(manager.create_sandbox("docker"))
    assert asyncio.run(manager.execute_tool(made, "python_executor", {"code": "x"})).success
    asyncio.run(manager.stop())
    assert daemon.sandboxes == {}


async def test_a_manager_needs_no_start(daemon: FakeDaemon) -> None:
    manager = LocalSandboxManager()
    assert await manager.create_sandbox("docker", {"memory_limit": "1g"}, "box") == "box"
    await manager.stop()


async def test_a_manager_sees_its_own_sandboxes_only(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as first, LocalSandboxManager() as second:
        made = await first.create_sandbox("docker")
        assert await second.list_sandboxes() == []
        assert await second.get_sandbox(made) is None
    assert daemon.sandboxes == {}


async def test_an_id_is_enough_to_use_a_sandbox_of_somebody_else(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as first, LocalSandboxManager() as second:
        made = await first.create_sandbox("docker", PYTHON)
        info = await second.get_sandbox_info(made)
        assert info is not None
        assert list(info.available_tools) == ["python_executor"]
        assert list(await second.get_sandbox_tools(made)) == ["python_executor"]
        assert (await second.execute_tool(made, "python_executor", {"code": "x"})).output == "x"
        await second.put_file(made, "a", "b")
        assert daemon.files[made, "a"] == (b"b", 0o644)
        assert await second.stop_sandbox(made)
        assert await second.delete_sandbox(made)
        assert not await second.delete_sandbox(made)


async def test_what_is_not_there_is_answered_as_documented(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        assert await manager.get_sandbox("nope") is None
        assert await manager.get_sandbox_info("nope") is None
        assert await manager.stop_sandbox("nope") is False
        assert await manager.delete_sandbox("nope") is False
        with pytest.raises(ValueError, match="'nope' not found"):
            await manager.execute_tool("nope", "python_executor", {"code": "1"})
        with pytest.raises(ValueError, match="'nope' not found"):
            await manager.get_sandbox_tools("nope")
        with pytest.raises(ValueError, match="'nope' not found"):
            await manager.put_archive("nope", "x", b"x")


async def test_a_stopped_sandbox_stays_until_it_is_deleted(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        made = await manager.create_sandbox("docker")
        other = await manager.create_sandbox("docker")
        assert await manager.stop_sandbox(made)
        assert [i.id for i in await manager.list_sandboxes(SandboxStatus.STOPPED)] == [made]
        assert [i.id for i in await manager.list_sandboxes("running")] == [other]
        with pytest.raises(ValueError, match=r"not active.*call start"):
            await manager.execute_tool(made, "python_executor", {"code": "1"})
        info = await manager.get_sandbox_info(made)
        assert info is not None
        assert info.status is SandboxStatus.STOPPED
        assert await manager.delete_sandbox(made)
        assert await manager.get_sandbox_info(made) is None
        assert len(await manager.list_sandboxes()) == 1


async def test_a_sandbox_whose_time_is_over_is_no_longer_listed(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        made = await manager.create_sandbox("docker")
        daemon.sandboxes.clear()
        assert await manager.list_sandboxes() == []
        assert await manager.get_sandbox_info(made) is None
        assert (await manager.get_stats())["total_sandboxes"] == 0


async def test_statistics_are_the_documented_ones(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager(SandboxManagerConfig(cleanup_interval=600)) as manager:
        await manager.create_sandbox("docker")
        assert await manager.get_stats() == {
            "manager_type": "local",
            "total_sandboxes": 1,
            "status_counts": {"running": 1},
            "sandbox_types": {"docker": 1},
            "running": True,
            "cleanup_interval": 600,
            "pool_size": 0,
            "pool_enabled": False,
            "pool_initialized": False,
        }
        assert manager._pool_initialized is False


async def test_a_sandbox_that_cannot_be_made_is_not_kept(daemon: FakeDaemon) -> None:
    refusal = Refusal(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", "privileged is not granted")
    daemon.refusals["CreateSandbox"].append(refusal)
    async with LocalSandboxManager() as manager:
        with pytest.raises(RuntimeError, match="privileged is not granted"):
            await manager.create_sandbox("docker", DockerSandboxConfig(privileged=True), "box")
        assert await manager.get_sandbox("box") is None
        assert await manager.create_sandbox("docker", None, "box") == "box"
        with pytest.raises(errors.SandboxExists):
            await manager.create_sandbox("docker", None, "box")
        with pytest.raises(ValueError, match="'nope' is none of"):
            await manager.create_sandbox("nope")
        with pytest.raises(ValidationError):
            await manager.create_sandbox("docker", {"cpu_limit": 0})


async def test_one_sandbox_that_cannot_be_removed_does_not_keep_the_others(daemon: FakeDaemon) -> None:
    manager = LocalSandboxManager()
    for _ in range(3):
        await manager.create_sandbox("docker")
    daemon.refusals["DeleteSandbox"].extend(guest_unavailable() for _ in range(3))
    daemon.refusals["DeleteSandbox"].append(Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "log_id 1"))
    with pytest.raises(errors.InternalError, match="log_id 1"):
        await manager.stop()
    assert len(daemon.sandboxes) == 1
    await manager.stop()
    assert daemon.sandboxes == {}


async def test_a_tool_can_be_added_to_a_managed_sandbox(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        made = await manager.create_sandbox("docker", PYTHON)
        sandbox = await manager.get_sandbox(made)
        assert isinstance(sandbox, DockerSandbox)
        sandbox.add_tool(Hello(name="hello"))
        assert (await manager.execute_tool(made, "hello", {})).output == {"message": "Hello, world!"}
        assert sorted(await manager.get_sandbox_tools(made)) == ["hello", "python_executor"]


async def test_a_manager_that_finds_no_daemon_says_so(tmp_path: Any) -> None:
    with pytest.raises(ConnectionError, match="no daemon answers at unix:"):
        async with LocalSandboxManager(address=f"unix:{tmp_path / 'none'}"):
            pass


def test_settings_are_a_model_a_dictionary_or_arguments() -> None:
    assert LocalSandboxManager().config == SandboxManagerConfig()
    assert LocalSandboxManager(cleanup_interval=600).config.cleanup_interval == 600
    assert LocalSandboxManager({"pool_size": 2}).config.pool_size == 2
    mixed = LocalSandboxManager(SandboxManagerConfig(cleanup_interval=1, timeout=5), cleanup_interval=2)
    assert (mixed.config.cleanup_interval, mixed.config.timeout) == (2, 5)
    inner = DockerSandboxConfig(memory_limit="1g")
    assert LocalSandboxManager(SandboxManagerConfig(sandbox_config=inner)).config.sandbox_config is inner
    with pytest.raises(ValidationError, match="cleanup"):
        LocalSandboxManager(cleanup=600)


def test_the_factory_chooses_by_type_or_address() -> None:
    for manager in (
        SandboxManagerFactory.create_manager(),
        SandboxManagerFactory.create_manager("local"),
        SandboxManagerFactory.create_manager(SandboxManagerType.LOCAL, SandboxManagerConfig(cleanup_interval=600)),
        SandboxManagerFactory.create_manager(config={"timeout": 5}),
    ):
        assert isinstance(manager, LocalSandboxManager)
    assert SandboxManagerType.LOCAL in SandboxManagerFactory.get_registered_types()


@pytest.mark.parametrize("settings", [{"manager_type": "nope"}, {"manager_type": SandboxManagerType.VOLCENGINE}])
def test_a_type_that_is_not_registered_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not registered; registered are .*local"):
        SandboxManagerFactory.create_manager(**settings)


def test_a_base_url_means_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SandboxManagerFactory, "_classes", {})

    @register_manager(SandboxManagerType.HTTP)
    class Http(SandboxManager):
        manager_type = SandboxManagerType.HTTP

        async def _connect(self) -> Any: ...

    for settings in (
        {"base_url": "http://localhost"},
        {"config": SandboxManagerConfig(base_url="http://localhost")},
        {"config": {"base_url": "http://localhost"}},
    ):
        assert isinstance(SandboxManagerFactory.create_manager(**settings), Http)


async def test_labels_tell_managers_apart(daemon: FakeDaemon) -> None:
    async with LocalSandboxManager() as manager:
        await manager.create_sandbox("docker")
        (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    assert request.labels.keys() == {"ms-enclave/manager"}
