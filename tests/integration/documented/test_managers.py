"""``LocalSandboxManager``: many sandboxes by id."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_enclave.errors import DaemonUnavailable, InvalidRequest, SandboxExists, SandboxNotFound
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxInfo, SandboxStatus, SandboxType

SMALL = DockerSandboxConfig(memory_limit="128m")
UNKNOWN = "no-such-sandbox"


@pytest.fixture(scope="module")
def used(manager: LocalSandboxManager) -> str:
    """The id of a sandbox for tests that leave it as it is."""
    return asyncio.run(manager.create_sandbox(SandboxType.DOCKER, SMALL))


@pytest.fixture
async def fresh() -> AsyncIterator[LocalSandboxManager]:
    """A manager without sandboxes."""
    async with LocalSandboxManager() as made:
        yield made


class TestCreating:
    async def test_create_returns_the_id_of_a_sandbox_that_runs(self, manager: LocalSandboxManager, used: str):
        info = await manager.get_sandbox_info(used)
        assert isinstance(info, SandboxInfo)
        assert (info.id, info.status, info.type) == (used, SandboxStatus.RUNNING, SandboxType.DOCKER)
        sandbox = await manager.get_sandbox(used)
        assert isinstance(sandbox, DockerSandbox)
        assert sandbox.id == used

    async def test_the_caller_may_choose_the_id(self, fresh: LocalSandboxManager):
        assert await fresh.create_sandbox("docker", SMALL, "chosen") == "chosen"
        with pytest.raises(SandboxExists, match="chosen"):
            await fresh.create_sandbox("docker", SMALL, "chosen")

    async def test_a_configuration_may_be_a_dictionary(self, fresh: LocalSandboxManager):
        settings = {"memory_limit": "128m", "tools_config": ["python_executor"]}
        sandbox_id = await fresh.create_sandbox(SandboxType.DOCKER, settings)
        assert list(await fresh.get_sandbox_tools(sandbox_id)) == ["python_executor"]

    async def test_what_cannot_be_made_leaves_no_record(self, fresh: LocalSandboxManager):
        with pytest.raises(ValueError, match="'nope' is none of 'docker'"):
            await fresh.create_sandbox("nope")
        with pytest.raises(RuntimeError, match="'no/such-image:1' not found"):
            await fresh.create_sandbox("docker", DockerSandboxConfig(image="no/such-image:1", memory_limit="128m"))
        assert await fresh.list_sandboxes() == []


class TestUnknownSandboxes:
    async def test_they_have_no_info_and_no_object(self, manager: LocalSandboxManager):
        assert await manager.get_sandbox_info(UNKNOWN) is None
        assert await manager.get_sandbox(UNKNOWN) is None

    async def test_to_stop_or_delete_them_is_false(self, manager: LocalSandboxManager):
        assert await manager.stop_sandbox(UNKNOWN) is False
        assert await manager.delete_sandbox(UNKNOWN) is False

    async def test_to_use_them_is_a_value_error(self, manager: LocalSandboxManager, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=f"sandbox '{UNKNOWN}' not found") as caught:
            await manager.execute_tool(UNKNOWN, "python_executor", {"code": "1"})
        assert isinstance(caught.value, SandboxNotFound)
        with pytest.raises(ValueError, match="not found"):
            await manager.get_sandbox_tools(UNKNOWN)
        with pytest.raises(ValueError, match="not found"):
            await manager.put_dir(UNKNOWN, tmp_path, "x")


class TestUsing:
    async def test_tools_run_by_the_id_of_the_sandbox(self, manager: LocalSandboxManager, used: str):
        await manager.execute_tool(used, "python_executor", {"code": "x = 20"})
        result = await manager.execute_tool(used, "python_executor", {"code": "print(x + 1)"})
        assert (result.success, result.output) == (True, "21\n")

    async def test_tools_are_listed_with_their_schemas(self, manager: LocalSandboxManager, used: str):
        tools = await manager.get_sandbox_tools(used)
        assert tools.keys() == {"python_executor", "shell_executor", "file_operation"}
        assert tools["shell_executor"]["function"]["parameters"]["required"] == ["command"]

    async def test_files_directories_and_archives(self, manager: LocalSandboxManager, used: str, tmp_path: Path):
        (tmp_path / "one.txt").write_text("1")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(tmp_path / "one.txt", "two.txt")
        await manager.put_dir(used, tmp_path, "in")
        await manager.put_archive(used, "in", buffer.getvalue())
        await manager.put_file(used, "in/three.txt", "3")
        result = await manager.execute_tool(used, "bash", {"command": "cat in/one.txt in/two.txt in/three.txt"})
        assert result.output == "113"

    async def test_a_sandbox_of_another_manager_can_be_used_but_is_not_listed(
        self, manager: LocalSandboxManager, used: str, fresh: LocalSandboxManager
    ):
        assert (await fresh.execute_tool(used, "bash", {"command": "echo shared"})).output == "shared\n"
        assert (await fresh.get_sandbox_info(used)) is not None
        assert await fresh.list_sandboxes() == []
        await fresh.stop()
        assert (await manager.execute_tool(used, "bash", {"command": "echo alive"})).output == "alive\n"


class TestListing:
    async def test_sandboxes_are_listed_by_status_and_counted(self, fresh: LocalSandboxManager):
        assert await fresh.list_sandboxes() == []
        first = await fresh.create_sandbox("docker", SMALL)
        second = await fresh.create_sandbox("docker", SMALL)
        await fresh.stop_sandbox(second)
        assert {info.id: info.status for info in await fresh.list_sandboxes()} == {
            first: SandboxStatus.RUNNING,
            second: SandboxStatus.STOPPED,
        }
        assert [info.id for info in await fresh.list_sandboxes(SandboxStatus.RUNNING)] == [first]
        assert [info.id for info in await fresh.list_sandboxes("stopped")] == [second]
        assert await fresh.list_sandboxes(status_filter=SandboxStatus.ERROR) == []
        stats = await fresh.get_stats()
        assert stats == {
            "manager_type": "local",
            "total_sandboxes": 2,
            "status_counts": {"running": 1, "stopped": 1},
            "sandbox_types": {"docker": 2},
            "running": True,
            "cleanup_interval": 300,
            "pool_size": 0,
            "pool_enabled": False,
            "pool_initialized": False,
        }

    async def test_an_unknown_status_is_a_value_error(self, fresh: LocalSandboxManager):
        with pytest.raises(ValueError, match="nope"):
            await fresh.list_sandboxes("nope")


class TestEnding:
    async def test_a_stopped_sandbox_stays_listed_until_it_is_deleted(self, fresh: LocalSandboxManager):
        sandbox_id = await fresh.create_sandbox("docker", SMALL)
        assert await fresh.stop_sandbox(sandbox_id) is True
        with pytest.raises(ValueError, match="not active"):
            await fresh.execute_tool(sandbox_id, "python_executor", {"code": "1"})
        sandbox = await fresh.get_sandbox(sandbox_id)
        assert sandbox is not None
        await sandbox.start()
        assert (await fresh.execute_tool(sandbox_id, "bash", {"command": "echo again"})).output == "again\n"
        assert await fresh.delete_sandbox(sandbox_id) is True
        assert await fresh.delete_sandbox(sandbox_id) is False
        assert await fresh.get_sandbox_info(sandbox_id) is None
        assert await fresh.list_sandboxes() == []

    async def test_cleanup_removes_all_that_it_made(self, fresh: LocalSandboxManager):
        made = [await fresh.create_sandbox("docker", SMALL) for _ in range(2)]
        await fresh.cleanup_all_sandboxes()
        assert await fresh.list_sandboxes() == []
        assert [await fresh.get_sandbox_info(sandbox_id) for sandbox_id in made] == [None, None]

    async def test_stop_removes_what_it_made_and_can_be_called_twice(self, manager: LocalSandboxManager):
        other = LocalSandboxManager()
        await other.start()
        sandbox_id = await other.create_sandbox("docker", SMALL)
        await other.stop()
        await other.stop()
        assert (await other.get_stats())["running"] is False
        assert await manager.get_sandbox_info(sandbox_id) is None


class TestItsDaemon:
    async def test_a_daemon_that_is_not_there_is_named_with_what_to_do(self):
        manager = LocalSandboxManager(address="unix:/nonexistent/enclaved.sock")
        with pytest.raises(ConnectionError, match=r"unix:/nonexistent/enclaved.sock .*enclaved run") as caught:
            await manager.start()
        assert isinstance(caught.value, DaemonUnavailable)

    async def test_what_is_no_address_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(InvalidRequest, match="write unix:/path/to/socket, host:port"):
            await LocalSandboxManager(address="somewhere").start()
        monkeypatch.setenv("MS_ENCLAVE_ADDRESS", "elsewhere")
        with pytest.raises(InvalidRequest, match="MS_ENCLAVE_ADDRESS: 'elsewhere'"):
            await LocalSandboxManager().start()

    async def test_the_address_is_an_argument_or_in_the_environment(
        self, manager: LocalSandboxManager, used: str, monkeypatch: pytest.MonkeyPatch
    ):
        sandbox = await manager.get_sandbox(used)
        assert sandbox is not None
        address = (await sandbox.get_execution_context()).address
        async with LocalSandboxManager(address=address.removeprefix("unix:")) as told:
            assert await told.get_sandbox_info(used) is not None
        monkeypatch.setenv("MS_ENCLAVE_ADDRESS", address)
        async with LocalSandboxManager() as found:
            assert await found.get_sandbox_info(used) is not None
