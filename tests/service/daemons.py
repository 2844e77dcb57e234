"""A whole daemon in this process, over the subprocess runtime."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import execution_service_pb2_grpc, sandbox_service_pb2_grpc, system_service_pb2_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.config import Settings, load
from enclaved.daemon import Addresses, StopRequest, serve
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from enclaved.tools.registry import ToolRegistry

PATIENCE_S = 60.0


@asynccontextmanager
async def short_directory() -> AsyncIterator[Path]:
    """A directory whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ed", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def settings_in(folder: Path, **flags: str) -> Settings:
    """Settings of a daemon that keeps everything below a directory. Flags are named with ``__`` for the dot."""
    ours = {"listen.unix": f"{folder}/e.sock", "state.dir": f"{folder}/state", "listen.metrics": "127.0.0.1:0"}
    given = {name.replace("__", "."): text for name, text in flags.items()}
    return load(Path("/dev/null"), environ={}, flags={**ours, **given}).settings


@dataclass
class Running:
    """A daemon that runs."""

    settings: Settings
    addresses: Addresses
    stop: StopRequest
    task: asyncio.Task[None]
    channel: aio.Channel

    def __post_init__(self) -> None:
        channel: Any = self.channel
        self.sandbox_stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(channel)
        self.execution_stub: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        self.system_stub: Any = system_service_pb2_grpc.SystemServiceStub(channel)

    async def create(self, sandbox_id: str = "box") -> None:
        """Creates a sandbox."""
        await self.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id=sandbox_id))

    async def get(self, path: str) -> tuple[int, str]:
        """Asks the metrics endpoint."""
        url = f"http://{self.addresses.metrics}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def ended(self) -> None:
        """Asks for the end and waits for it."""
        self.stop.ask("the test")
        async with asyncio.timeout(PATIENCE_S):
            await self.task


@asynccontextmanager
async def daemon(settings: Settings, **arguments: Any) -> AsyncIterator[Running]:
    """Runs a daemon for as long as the block runs. Raises what `serve` raises if it does not start."""
    stop = StopRequest()
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    given = {"runtime": SubprocessRuntime(), "tools": ToolRegistry.built_in(), **arguments}
    task = asyncio.create_task(serve(settings, stop=stop, ready=ready.set_result, **given))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    async with aio.insecure_channel(f"unix:{settings.listen.unix}") as channel:
        running = Running(settings, ready.result(), stop, task, channel)
        try:
            yield running
        finally:
            if not task.cancelled():
                await running.ended()


def python(code: str, sandbox_id: str = "box", **changes: Any) -> execution_pb.ExecutionSpec:
    """A call of ``python_executor``."""
    parameters = json.dumps({"code": code})
    return execution_pb.ExecutionSpec(
        sandbox_id=sandbox_id, tool="python_executor", parameters_json=parameters, **changes
    )
