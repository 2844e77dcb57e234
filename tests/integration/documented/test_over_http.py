"""``HttpSandboxManager`` against a server with real sandboxes, and the server's ASGI application in a web server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvicorn
from ms_enclave._embedded import EmbeddedDaemon, HttpListener
from ms_enclave.errors import ImageNotFound, NotServed, PolicyDenied, SandboxExists, SandboxNotFound, Unauthenticated
from ms_enclave.sandbox import create_server, sync
from ms_enclave.sandbox.manager import HttpSandboxManager, LocalSandboxManager, SandboxManagerFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionStatus, SandboxStatus, SandboxType

SMALL = DockerSandboxConfig(memory_limit="128m")


@pytest.fixture(scope="module")
def url(default_image: str) -> Iterator[str]:
    """Where a server answers."""
    daemon = EmbeddedDaemon(HttpListener(api_key="key"))
    daemon.ensure()
    assert daemon.http_url is not None
    yield daemon.http_url
    daemon.stop()


@pytest.fixture
async def manager(url: str) -> AsyncIterator[HttpSandboxManager]:
    """A manager without sandboxes."""
    async with HttpSandboxManager(base_url=url, api_key="key") as made:
        yield made


async def test_a_sandbox_lives_its_life_over_http(manager: HttpSandboxManager, url: str):
    made = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
    info = await manager.get_sandbox_info(made)
    assert info is not None
    assert (info.status, info.config["memory_limit"]) == (SandboxStatus.RUNNING, "128m")
    assert sorted(info.available_tools) == ["file_operation", "python_executor", "shell_executor"]
    assert (await manager.execute_tool(made, "python_executor", {"code": "x = 41"})).success
    found = await manager.execute_tool(made, "python_executor", {"code": "print(x + 1)"})
    assert (found.output, found.error, found.metadata["verdict"]) == ("42\n", None, "EXITED")
    assert (await manager.execute_tool(made, "bash", {"command": "exit 3"})).error == "Command failed with exit code 3"
    found = await manager.execute_tool(made, "python_executor", {"code": "while True: pass", "timeout": 1})
    assert (found.status, found.error) == (ExecutionStatus.TIMEOUT, "Command timed out after 1 seconds")
    assert (await manager.execute_tool(made, "python_executor", {"code": " "})).error == "No code provided"
    sandbox = await manager.get_sandbox(made)
    assert sandbox is not None
    done = await sandbox.execute_command(["ls", "nope"])
    assert (done.exit_code, "nope" in (done.stderr or "")) == (2, True)
    assert await manager.stop_sandbox(made)
    assert [info.id for info in await manager.list_sandboxes("stopped")] == [made]
    with pytest.raises(ValueError, match="not active"):
        await manager.execute_tool(made, "python_executor", {"code": "1"})
    assert await manager.delete_sandbox(made)
    assert await manager.get_sandbox_info(made) is None
    assert (await manager.get_stats())["total_sandboxes"] == 0


async def test_errors_are_the_same_as_without_http(manager: HttpSandboxManager):
    with pytest.raises(PolicyDenied) as denied:
        await manager.create_sandbox("docker", DockerSandboxConfig(privileged=True))
    assert denied.value.metadata["rule"] == "privileged"
    with pytest.raises(ImageNotFound, match="no/such-image:1"):
        await manager.create_sandbox("docker", DockerSandboxConfig(image="no/such-image:1"))
    made = await manager.create_sandbox("docker", {"memory_limit": "128m"}, "chosen")
    assert made == "chosen"
    async with HttpSandboxManager(manager.config) as other:
        with pytest.raises(SandboxExists):
            await other.create_sandbox("docker", SMALL, "chosen")
    with pytest.raises(ValueError, match=r"parameters\.nope"):
        await manager.execute_tool(made, "python_executor", {"nope": 1})
    with pytest.raises(SandboxNotFound, match="unknown"):
        await manager.execute_tool("unknown", "python_executor", {"code": "1"})
    sandbox = await manager.get_sandbox(made)
    assert sandbox is not None
    with pytest.raises(NotServed, match="operation 'read'"):
        await sandbox.read_file("x")


async def test_files_and_archives_go_in(manager: HttpSandboxManager, tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.sh").write_text("echo ran")
    (tmp_path / "deep" / "run.sh").chmod(0o755)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "deep", "packed")
    made = await manager.create_sandbox("docker", SMALL)
    await manager.put_file(made, "a b/ü.txt", "text")
    await manager.put_dir(made, tmp_path, "dir")
    await manager.put_archive(made, "/tmp/arch", packed.getvalue())
    script = "cat 'a b/ü.txt'; dir/deep/run.sh; sh /tmp/arch/packed/run.sh"
    assert (await manager.execute_tool(made, "bash", {"command": script})).output == "textran\nran\n"


async def test_who_has_no_key_may_nothing(url: str):
    for key in (None, "wrong"):
        with pytest.raises(Unauthenticated):
            async with HttpSandboxManager(base_url=url, api_key=key):
                pass


def test_a_manager_may_live_in_three_event_loops(url: str):
    manager = SandboxManagerFactory.create_manager(base_url=url, api_key="key")
    asyncio.run(manager.start())
    made = asyncio.run(manager.create_sandbox("docker", SMALL))
    assert asyncio.run(manager.execute_tool(made, "python_executor", {"code": "print(1)"})).output == "1\n"
    asyncio.run(manager.stop())


def test_without_an_event_loop_it_is_the_same(url: str):
    with sync.HttpSandboxManager(base_url=url, api_key="key") as manager:
        made = manager.create_sandbox("docker", SMALL)
        assert manager.execute_tool(made, "python_executor", {"code": "print(1)"}).output == "1\n"


@pytest.mark.parametrize("kind", ["local", "http"])
async def test_a_pool_serves_calls_each_alone_in_a_clean_sandbox(url: str, kind: str):
    manager = LocalSandboxManager() if kind == "local" else HttpSandboxManager(base_url=url, api_key="key")
    async with manager:
        with pytest.raises(ValueError, match="Sandbox pool is empty, call initialize_pool first"):
            await manager.execute_tool_in_pool("python_executor", {"code": "1"})
        ids = await manager.initialize_pool(2, SandboxType.DOCKER, SMALL)
        assert manager._pool_initialized
        code = "import os; print('x' in globals(), os.listdir()); x = 1; open('left', 'w').close()"
        calls = [manager.execute_tool_in_pool("python_executor", {"code": code}, timeout=60) for _ in range(6)]
        found = await asyncio.gather(*calls)
        assert {result.output for result in found} == {"False []\n"}
        stats = await manager.get_stats()
        assert (stats["pool_size"], stats["pool_initialized"]) == (2, True)
        assert set(ids) <= {info.id for info in await manager.list_sandboxes()}
        busy = [
            asyncio.create_task(manager.execute_tool_in_pool("bash", {"command": "touch /tmp/begun; sleep 60"}))
            for _ in ids
        ]
        begun = {"command": "while [ ! -e /tmp/begun ]; do sleep 0.01; done"}
        await asyncio.gather(*(manager.execute_tool(one, "bash", begun) for one in ids))
        with pytest.raises(TimeoutError):
            await manager.execute_tool_in_pool("bash", {"command": "true"}, timeout=0.1)
        for task in busy:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await manager.execute_tool_in_pool("bash", {"command": "ls /tmp"}, timeout=60)).output == ""


@contextlib.contextmanager
def web_server(app: object) -> Iterator[str]:
    """A web server of the user's own, on a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that clients wait until the server has started
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))  # type: ignore[arg-type]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


async def test_the_application_works_in_a_web_server_of_one_s_own(default_image: str):
    with web_server(create_server(api_key="own", pool_size=0).app) as url:
        async with HttpSandboxManager(base_url=url, api_key="own") as manager:
            made = await manager.create_sandbox("docker", SMALL)
            await manager.put_file(made, "big", "x" * 5_000_000)
            assert (await manager.execute_tool(made, "bash", {"command": "wc -c < big"})).output == "5000000\n"
            task = asyncio.create_task(
                manager.execute_tool(made, "python_executor", {"code": "open('begun', 'w')\nwhile True: pass"})
            )
            begun = "while [ ! -e begun ]; do sleep 0.01; done"
            await manager.execute_tool(made, "bash", {"command": begun})
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            free = await manager.execute_tool(made, "python_executor", {"code": "print('free')", "timeout": 20})
            assert free.output == "free\n"
        with pytest.raises(Unauthenticated):
            await HttpSandboxManager(base_url=url).start()
