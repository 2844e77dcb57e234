"""A daemon in a process of its own, over the subprocess runtime, so that its memory and its files can be looked at.

Run as ``python process.py FOLDER FILES_MAX FLAGS``: it serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc

from enclaved import log
from enclaved.daemon import Addresses, StopRequest, serve
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from enclaved.tools.registry import ToolRegistry
from tests.service.daemons import PATIENCE_S, settings_in, short_directory

ROOT = Path(__file__).resolve().parents[3]
MIB = 1024 * 1024
LOOK_EVERY_S = 0.05
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Channels to the same address share a connection otherwise."""


@dataclass
class Served:
    """A daemon's process."""

    folder: Path
    process: Process
    channel: aio.Channel

    @property
    def socket(self) -> str:
        """Path of its unix socket."""
        return f"{self.folder}/e.sock"

    @property
    def http_socket(self) -> str:
        """Path of the HTTP API's unix socket."""
        return f"{self.folder}/h.sock"

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "daemon.log").read_text()

    def memory_bytes(self) -> int:
        """Its resident set, without files that it maps."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the daemon has no memory: it is gone")

    def descriptors(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def create(self, sandbox_id: str = "box") -> None:
        """Creates a sandbox."""
        stub = sandbox_service_pb2_grpc.SandboxServiceStub(self.channel)  # type: ignore[arg-type]
        request = sandbox_pb.CreateSandboxRequest(sandbox_id=sandbox_id)
        await stub.CreateSandbox(request, timeout=PATIENCE_S)

    async def answers(self) -> bool:
        """Whether somebody else is served, now or soon: a client that is refused for now tries again."""
        for _ in range(int(PATIENCE_S / LOOK_EVERY_S)):
            async with aio.insecure_channel(f"unix:{self.socket}", options=OWN_CONNECTION) as own:
                stub = sandbox_service_pb2_grpc.SandboxServiceStub(own)  # type: ignore[arg-type]
                found = await code_of(stub.ListSandboxes(sandbox_pb.ListSandboxesRequest(), timeout=PATIENCE_S))
            if found is grpc.StatusCode.OK:
                return True
            assert found in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
            await asyncio.sleep(LOOK_EVERY_S)  # between two looks at another process
        return False


async def code_of(call: Any) -> grpc.StatusCode:
    """Waits for the end of a call, and says how it ended."""
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def daemon_process(files_max: int = 0, **flags: str) -> AsyncIterator[Served]:
    """A daemon that listens on unix sockets for gRPC and HTTP. It must end well, and have had no fault of its own."""
    async with short_directory() as folder:
        folder.chmod(0o711)
        arguments = [str(folder), str(files_max), json.dumps(flags)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "sdk_python")])
        with (folder / "daemon.log").open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", __file__, *arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=file,
                env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "2"},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert await process.stdout.readline() == b"ready\n", (folder / "daemon.log").read_text()
            async with aio.insecure_channel(f"unix:{folder}/e.sock") as channel:
                served = Served(folder, process, channel)
                yield served
            process.stdin.close()
            async with asyncio.timeout(PATIENCE_S):
                assert await process.wait() == 0
            faults = [line for line in served.log.splitlines() if "fault of ours" in line or "Traceback" in line]
            assert faults == []
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _main(folder: Path, flags: dict[str, str]) -> None:
    stop, loop = StopRequest(), asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(0)
        stop.ask("the test")

    loop.add_reader(0, end)
    settings = settings_in(folder, **{"listen__http": f"unix:{folder}/h.sock", "listen__metrics": "", **flags})

    def ready(_: Addresses) -> None:
        print("ready", flush=True)

    await serve(settings, stop=stop, ready=ready, runtime=SubprocessRuntime(), tools=ToolRegistry.built_in())


if __name__ == "__main__":
    if files_max := int(sys.argv[2]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    log.configure("warning", "json")
    asyncio.run(_main(Path(sys.argv[1]), json.loads(sys.argv[3])))
