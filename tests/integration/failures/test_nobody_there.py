"""No daemon, no engine, no permission: what a program is told, and that it works as soon as they are there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import aio
from ms_enclave.errors import (
    DaemonUnavailable,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
)
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.runtime.docker import detect_engine_url
from tests.integration.failures.ground import Ground, Stubs, until
from tests.service.edge import reason

SMALL = {"memory_limit": "128m"}


# -- no daemon ---------------------------------------------------------------------------------------------------


async def test_an_address_where_nobody_is_says_so_and_how_to_start_one(ground: Ground, monkeypatch: pytest.MonkeyPatch):
    stale = ground.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket() as closed:
        dead.bind(str(stale))
        closed.bind(("127.0.0.1", 0))
        # Bound and not listening: nobody else gets the port meanwhile.
        port = closed.getsockname()[1]
        for address in (f"unix:{ground.folder}/missing.sock", f"unix:{stale}", f"127.0.0.1:{port}"):
            monkeypatch.setenv("MS_ENCLAVE_ADDRESS", address)
            sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, SMALL)
            for call in (sandbox.start, LocalSandboxManager().start):
                with pytest.raises(DaemonUnavailable, match=r"enclaved run.*MS_ENCLAVE_ADDRESS") as caught:
                    await call()
                assert address in str(caught.value)
                assert isinstance(caught.value, ConnectionError)
            await sandbox.stop()
            await sandbox.cleanup()


@pytest.mark.parametrize(
    "address", ["unix:relative", "host", "host:port", "host:99999", "ftp://a:1", "unix:/" + "x" * 200]
)
async def test_what_is_no_address_is_refused_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv("MS_ENCLAVE_ADDRESS", address)
    with pytest.raises(InvalidRequest, match="MS_ENCLAVE_ADDRESS"):
        await SandboxFactory.create_sandbox(SandboxType.DOCKER).start()


async def test_something_that_accepts_and_never_answers_is_given_up_in_time(ground: Ground):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{ground.folder}/silent.sock")
        silent.listen()
        with pytest.raises(DeadlineExceeded, match=r"silent\.sock did not answer within 1 seconds"):
            await LocalSandboxManager(address=f"unix:{ground.folder}/silent.sock", timeout=1).start()


async def test_a_daemon_that_is_busy_when_it_is_called_is_waited_for(ground: Ground):
    daemon = await ground.daemon()
    daemon.send(signal.SIGSTOP)
    calling = asyncio.create_task(LocalSandboxManager(address=daemon.address).start())
    await asyncio.wait([calling], timeout=1)
    assert not calling.done(), "it was given up too soon"
    daemon.send(signal.SIGCONT)
    await calling


# -- no engine ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def engine_behind(path: Path) -> AsyncIterator[None]:
    """Serves the real engine at another path; at the end of the block every connection breaks."""
    real = detect_engine_url().removeprefix("unix://")
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        pumps.add(task)
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(real)
            try:
                await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))
            finally:
                back_writer.transport.abort()
        except asyncio.CancelledError:
            pass  # the end of the block
        finally:
            writer.transport.abort()
            pumps.discard(task)

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        path.unlink()
        for task in list(pumps):
            task.cancel()
        if pumps:
            await asyncio.wait(pumps)


async def test_a_daemon_without_an_engine_says_what_to_do_and_serves_when_there_is_one(ground: Ground):
    url = f"unix://{ground.folder}/engine.sock"
    daemon = await ground.daemon("--engine-url", url)
    async with LocalSandboxManager(address=daemon.address) as manager:
        with pytest.raises(EngineUnavailable, match=r"systemctl start docker.*scripts/quickstart") as caught:
            await manager.create_sandbox(SandboxType.DOCKER, SMALL)
        assert caught.value.metadata["engine"] == url
        assert url in str(caught.value)
        assert await manager.list_sandboxes() == []

        async with engine_behind(ground.folder / "engine.sock"):
            sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
            result = await manager.execute_tool(sandbox_id, "python_executor", {"code": "kept = 7"})
            assert result.success, result.error

        # The engine is gone. What runs does not need it; only making and removing do.
        result = await manager.execute_tool(sandbox_id, "python_executor", {"code": "print(kept)"})
        assert result.output == "7\n"
        async with aio.insecure_channel(daemon.address) as channel:  # the SDK would try for a while
            sandboxes = Stubs(channel).sandboxes
            for call in (
                sandboxes.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id=sandbox_id, wait=True)),
                sandboxes.CreateSandbox(sandbox_pb.CreateSandboxRequest()),
            ):
                with pytest.raises(aio.AioRpcError) as refused:
                    await call
                assert reason(refused.value) == "ENGINE_UNAVAILABLE"

        # A deletion that was asked for happens all the same, as soon as there is an engine.
        assert len(ground.containers()) == 1
        async with engine_behind(ground.folder / "engine.sock"):
            await manager.delete_sandbox(sandbox_id)
            assert ground.containers() == []
            sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
            result = await manager.execute_tool(sandbox_id, "python_executor", {"code": "print(6 * 7)"})
            assert result.output == "42\n"
            await manager.delete_sandbox(sandbox_id)
    daemon.check_log()


async def test_a_daemon_ends_soon_although_the_engine_never_came(ground: Ground):
    daemon = await ground.daemon("--engine-url", f"unix://{ground.folder}/engine.sock")
    daemon.process.terminate()
    assert await daemon.ended() == 0
    daemon.check_log()


# -- no permission -----------------------------------------------------------------------------------------------

ASK_FOR_A_SANDBOX = """
import asyncio
from ms_enclave.sandbox.boxes import SandboxFactory

async def main():
    try:
        async with SandboxFactory.create_sandbox("docker", {"memory_limit": "128m"}) as sandbox:
            print((await sandbox.execute_tool("python_executor", {"code": "print(6 * 7)"})).output)
    except ConnectionError as error:
        print(type(error).__name__, error)

asyncio.run(main())
"""
SOMEBODY = 1_234_567
AS_SOMEBODY = (
    *("setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"),
    # May read this checkout and its interpreter wherever they are, and write nowhere: a socket must be writable.
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
)


@asynccontextmanager
async def out_of_reach(ground: Ground) -> AsyncIterator[tuple[tuple[str, ...], str]]:
    """A prefix for commands and an engine's address that they may not use. Root becomes somebody else for that."""
    if os.geteuid() == 0:
        os.chown(ground.run_dir, SOMEBODY, SOMEBODY)
        yield AS_SOMEBODY, detect_engine_url()
    else:
        async with engine_behind(ground.folder / "engine.sock"):
            (ground.folder / "engine.sock").chmod(0)
            yield (), f"unix://{ground.folder}/engine.sock"


async def test_without_permission_on_the_engines_socket_a_program_is_told_which_and_what_to_do(ground: Ground):
    async with out_of_reach(ground) as (prefix, url):
        program = ground.program(ASK_FOR_A_SANDBOX, prefix=prefix, DOCKER_HOST=url, HOME=str(ground.run_dir))
        assert await program.ended() == 0
        assert program.text.startswith("EngineUnavailable no permission on the container engine's socket")
        assert url in program.text
        assert "sudo usermod -aG docker USER" in program.text
        assert len(program.text.splitlines()) == 1
        await until(lambda: ground.embedded_directories() == [], "the end of its daemon without a trace")


async def test_without_permission_on_the_daemons_socket_a_program_is_told_which_and_what_to_do(ground: Ground):
    daemon = await ground.daemon()
    async with out_of_reach(ground) as (prefix, _):
        if not prefix:
            daemon.socket.chmod(0)
        address = {"MS_ENCLAVE_ADDRESS": daemon.address}
        program = ground.program(ASK_FOR_A_SANDBOX, prefix=prefix, HOME=str(ground.run_dir), **address)
        assert await program.ended() == 0
    assert program.text.startswith(f"DaemonUnavailable no permission on the daemon's socket at {daemon.address}: ")
    assert "usermod -aG ms-enclave" in program.text
    assert len(program.text.splitlines()) == 1
