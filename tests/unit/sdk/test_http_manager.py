"""The manager over HTTP keeps sandboxes at a server as the documentation says."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave import errors
from ms_enclave.sandbox.manager import HttpSandboxManager, SandboxManagerFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxManagerConfig, SandboxManagerType, SandboxType

from tests.unit.sdk.fake_server import FakeServer, served

PYTHON = DockerSandboxConfig(image="python:3.11-slim", tools_config={"python_executor": {}})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with served(FakeServer()) as running:
        yield running


async def test_a_manager_makes_sandboxes_and_removes_them_at_its_end(server: FakeServer) -> None:
    async with HttpSandboxManager(base_url=server.url) as manager:
        made = await manager.create_sandbox(SandboxType.DOCKER, PYTHON)
        assert made in server.sandboxes
        assert (await manager.execute_tool(made, "python_executor", {"code": "x"})).output == "x"
        assert list(await manager.get_sandbox_tools(made)) == ["python_executor"]
        assert [info.id for info in await manager.list_sandboxes()] == [made]
        sandbox = await manager.get_sandbox(made)
        assert sandbox is not None
        assert sandbox.id == made
        assert (await sandbox.execute_command("ls")).stdout == "ls"
        assert (await manager.get_stats())["total_sandboxes"] == 1
    assert server.sandboxes == {}
    await manager.stop()


async def test_the_list_is_that_of_the_server(server: FakeServer) -> None:
    async with HttpSandboxManager(base_url=server.url) as first, HttpSandboxManager(base_url=server.url) as second:
        made = await first.create_sandbox("docker")
        assert [info.id for info in await second.list_sandboxes("running")] == [made]
        assert await second.list_sandboxes("stopped") == []
        assert (await second.execute_tool(made, "bash", {"command": "x"})).success
        info = await second.get_sandbox_info(made)
        assert info is not None
        assert await second.stop_sandbox(made)
        with pytest.raises(ValueError, match="not active"):
            await second.execute_tool(made, "shell_executor", {"command": "x"})
        assert await second.delete_sandbox(made)
        assert not await second.delete_sandbox(made)
        assert not await second.stop_sandbox(made)
        assert await second.get_sandbox_info(made) is None
        with pytest.raises(ValueError, match=f"{made} not found"):
            await second.execute_tool(made, "shell_executor", {"command": "x"})


async def test_files_go_into_a_sandbox(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("b")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "a", "c")
    async with HttpSandboxManager(base_url=server.url) as manager:
        made = await manager.create_sandbox("docker")
        await manager.put_file(made, "x/y.txt", "y")
        await manager.put_dir(made, tmp_path, "dir")
        await manager.put_archive(made, "arch", packed.getvalue())
        assert {path: data for (_, path), (data, _) in server.files.items()} == {
            "x/y.txt": b"y",
            "dir/a/b.txt": b"b",
            "arch/c/b.txt": b"b",
        }
        with pytest.raises(ValueError, match="must not be empty"):
            await manager.put_archive(made, "arch", b"")


def test_a_manager_may_live_in_three_event_loops(server: FakeServer) -> None:
    manager = HttpSandboxManager(base_url=server.url)
    asyncio.run(manager.start())
    made = asyncio.run(manager.create_sandbox("docker"))
    assert asyncio.run(manager.execute_tool(made, "python_executor", {"code": "x"})).success
    asyncio.run(manager.stop())
    assert server.sandboxes == {}


async def test_a_server_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(ConnectionError, match=r"no server answers at http://127\.0\.0\.1:1 "):
        async with HttpSandboxManager(base_url="http://127.0.0.1:1"):
            pass


async def test_a_key_is_sent(server: FakeServer) -> None:
    server.api_key = "secret"
    async with HttpSandboxManager(base_url=server.url, api_key="secret"):
        pass
    with pytest.raises(errors.Unauthenticated):
        async with HttpSandboxManager(SandboxManagerConfig(base_url=server.url, api_key="wrong")):
            pass


def test_the_factory_makes_one_for_a_base_url() -> None:
    for settings in (
        {"base_url": "http://h"},
        {"config": SandboxManagerConfig(base_url="http://h")},
        {"manager_type": SandboxManagerType.HTTP, "config": {"base_url": "http://h"}},
    ):
        assert isinstance(SandboxManagerFactory.create_manager(**settings), HttpSandboxManager)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="base_url: is needed"):
        SandboxManagerFactory.create_manager("http")
    with pytest.raises(ValueError, match="is no address of a server"):
        HttpSandboxManager(base_url="localhost:8000")
