"""A state directory with an engine that outlives daemons, and what tests of one daemon after another do there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core.state import DATABASE_NAME, State
from enclaved.errors import EngineUnavailable
from enclaved.runtime.base import ContainerRecord, ContainerStatus
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import reason

LINES = 3000
SLOW = f"""
import time
for number in range({LINES}):
    print(f"{{number:06}} {{'x' * 60}}", flush=True)
    if number % 100 == 0:
        time.sleep(0.01)
"""
WHOLE = b"".join(b"%06d %s\n" % (number, b"x" * 60) for number in range(LINES))

AWAITED = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
"""What a program does that waits for `go`."""


class Engine(SubprocessRuntime):
    """Outlives daemons. Can be away."""

    away = False
    paused = False
    looks = 0

    async def has_not(self, container_id: str) -> None:
        """Waits until a container is gone."""

        async def is_gone() -> bool:
            return container_id not in self._containers

        await until(is_gone)

    async def close(self) -> None:
        """The daemon has ended; the containers go on."""

    async def shut_down(self) -> None:
        await super().close()

    async def info(self) -> Any:
        self._ask()
        return await super().info()

    async def list_records(self) -> list[ContainerRecord]:
        self._ask()
        return await super().list_records()

    async def status(self, container_id: str) -> ContainerStatus | None:
        self._ask()
        self.looks += 1
        found = await super().status(container_id)
        return replace(found, paused=found.paused or self.paused) if found is not None else None

    def _ask(self) -> None:
        if self.away:
            raise EngineUnavailable("subprocess", "it sleeps")


class World:
    """A state directory and an engine, and the daemons that come and go there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.state_dir = folder / "state"

    @asynccontextmanager
    async def daemon(self, **flags: str) -> AsyncIterator[Running]:
        """A daemon whose sandboxes run on when it is gone."""
        settings = settings_in(self.folder, **{"daemon__keep_sandboxes_on_stop": "true", **flags})
        async with daemon(settings, runtime=self.engine) as running:
            yield running

    @asynccontextmanager
    async def state(self) -> AsyncIterator[State]:
        """What is written down, while no daemon runs."""
        found = State.open(self.state_dir / DATABASE_NAME)
        try:
            yield found
        finally:
            found.close()


W = TypeVar("W", bound=World)


@asynccontextmanager
async def new_world(kind: type[W]) -> AsyncIterator[W]:
    """Makes a world, and takes it down with all that lives in it."""
    async with short_directory() as folder:
        world = kind(folder)
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield world
        finally:
            await world.engine.shut_down()


async def started(running: Running, spec: pb.ExecutionSpec, until_bytes: int = 0) -> bytes:
    """Starts an execution and leaves when it wrote so much; returns what came."""
    call = running.execution_stub.Execute()
    await call.write(pb.ExecuteRequest(start=spec))
    got = bytearray()
    assert (await call.read()).event.HasField("started")
    while len(got) < until_bytes:
        event = (await call.read()).event
        assert event.HasField("output") or event.HasField("notice"), event
        got += event.output.data
    call.cancel()
    return bytes(got)


async def followed(running: Running, execution_id: str, offset: int = 0) -> tuple[bytes, pb.Finished]:
    """Follows an execution from an offset to its end. Tries again while its guest is on its way back."""
    request = pb.AttachRequest(execution_id=execution_id, offsets=[pb.ChannelOffset(channel=1, offset=offset)])
    got = bytearray()
    async for answer in running.execution_stub.Attach(request):
        if answer.event.HasField("output"):
            if answer.event.output.channel == pb.CHANNEL_STDOUT:
                assert answer.event.output.offset == offset + len(got)
                got += answer.event.output.data
        elif answer.event.HasField("finished"):
            return bytes(got), answer.event.finished
    raise AssertionError("it did not end")


def go(world: World) -> None:
    """Lets the program of the only sandbox go on."""
    (container,) = world.engine._containers.values()
    (container.working_dir / "go").touch()


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """Looks again and again until what it sees is true, and returns that."""
    for _ in range(10_000):
        if seen := await look():
            return seen
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")


async def run(running: Running, code: str, sandbox_id: str = "box") -> str:
    """Runs Python to its end, as soon as the guest is there."""

    async def attempt() -> Any:
        try:
            return await running.execution_stub.Run(pb.RunRequest(spec=python(code, sandbox_id)))
        except grpc.aio.AioRpcError as error:
            if (error.code(), reason(error)) != (grpc.StatusCode.UNAVAILABLE, "GUEST_UNAVAILABLE"):
                raise
            return None

    return str((await until(attempt)).stdout.decode())


async def info(running: Running, sandbox_id: str = "box") -> Any:
    """Looks at a sandbox."""
    answer = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id=sandbox_id))
    return answer.sandbox


async def has_status(running: Running, status: Any, sandbox_id: str = "box") -> Any:
    """Waits until a sandbox is in a state."""

    async def look() -> Any:
        found = await info(running, sandbox_id)
        return found if found.state == status else None

    return await until(look)


async def recovered(running: Running, outcome: str, count: int) -> None:
    """Waits until so many sandboxes had this outcome."""
    line = f'enclaved_sandboxes_recovered_total{{outcome="{outcome}"}} {count:.1f}'

    async def look() -> bool:
        return line in (await running.get("/metrics"))[1]

    await until(look)
