"""What hostile clients cost in memory: the daemon's own growth is measured while they do their worst."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import execution_service_pb2_grpc, file_service_pb2_grpc, sandbox_service_pb2_grpc
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.service.daemons import PATIENCE_S, python
from tests.service.hostile import http2
from tests.service.hostile.http2 import Http2, connection
from tests.service.hostile.process import MIB, OWN_CONNECTION, Served, code_of, daemon_process

WATCH = "/grpc.health.v1.Health/Watch"
RUN = "/ms_enclave.v1.ExecutionService/Run"
STALLED_LOOKS = 20


def command(text: str, **changes: Any) -> execution_pb.ExecutionSpec:
    """A call of ``shell_executor``."""
    parameters = json.dumps({"command": text})
    return execution_pb.ExecutionSpec(
        sandbox_id="box", tool="shell_executor", parameters_json=parameters, timeout_s=300, **changes
    )


def stubs(served: Served) -> tuple[Any, Any, Any]:
    """Stubs for executions, files and sandboxes."""
    channel: Any = served.channel
    return (
        execution_service_pb2_grpc.ExecutionServiceStub(channel),
        file_service_pb2_grpc.FileServiceStub(channel),
        sandbox_service_pb2_grpc.SandboxServiceStub(channel),
    )


async def settled(served: Served) -> int:
    """The daemon's memory as soon as it does not grow any more between two looks."""
    before = served.memory_bytes()
    for _ in range(STALLED_LOOKS * 10):
        assert await served.answers()
        now = served.memory_bytes()
        if now - before < 64 * 1024:
            return now
        before = now
    return before


async def test_a_thousand_connections_and_a_thousand_idle_streams_are_shed_and_cost_little():
    async with daemon_process(listen__connections_max="400", listen__calls_max="256") as served:
        await served.create()
        before = await settled(served)
        async with AsyncExitStack() as stack:
            calls: list[Any] = []
            for _ in range(20):
                channel: Any = await stack.enter_async_context(
                    aio.insecure_channel(f"unix:{served.socket}", options=OWN_CONNECTION)
                )
                calls += [channel.unary_stream(WATCH)(b"") for _ in range(50)]
            found = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
            refused = [error for error in found if isinstance(error, aio.AioRpcError)]
            assert len(found) - len(refused) == 256 - 256 // 8
            assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            held = [await Http2.open(served.socket) for _ in range(1000)]
            assert sum([await client.until(http2.SETTINGS) is not None for client in held]) <= 400
            _, _, sandboxes = stubs(served)
            await sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest(), timeout=PATIENCE_S)
            grown = served.memory_bytes() - before
            for client in held:
                await client.close()
            for call in calls:
                call.cancel()
        assert await served.answers()
        assert grown < 64 * MIB


async def test_endless_output_that_nobody_reads_stays_where_it_is_made():
    async with daemon_process() as served:
        await served.create()
        executions, _, _ = stubs(served)
        before = await settled(served)
        calls = []
        for _ in range(8):
            call = executions.Execute()
            await call.write(execution_pb.ExecuteRequest(start=command("yes")))
            assert await call.read() is not aio.EOF
            calls.append(call)
        grown = await settled(served) - before
        for call in calls:
            call.cancel()
        assert grown < 32 * MIB


async def test_input_that_no_program_reads_stays_at_its_client():
    async with daemon_process() as served:
        await served.create()
        executions, _, _ = stubs(served)
        before = await settled(served)
        call = executions.Execute()
        await call.write(execution_pb.ExecuteRequest(start=command("sleep 300", stdin=True)))
        assert await call.read() is not aio.EOF
        piece = execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=bytes(64 * 1024)))
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while sent < 1024 * MIB:
                await call.write(piece)
                sent += len(piece.stdin.data)

        pouring = asyncio.create_task(pour())
        grown = await settled(served) - before
        for _ in range(STALLED_LOOKS):
            assert await served.answers()
        assert not pouring.done()
        pouring.cancel()
        await asyncio.wait([pouring])
        call.cancel()
        assert sent < 16 * MIB
        assert grown < 16 * MIB


async def test_answers_that_nobody_takes_have_a_room_for_all_of_them():
    async with daemon_process() as served:
        await served.create()
        executions, _, _ = stubs(served)
        before = await settled(served)
        async with connection(served.socket, window=0) as client:
            for number in range(75):
                spec = python("print('x' * 1_040_000)", execution_id=f"run-{number}")
                client.begin(2 * number + 1, RUN)
                client.message(2 * number + 1, execution_pb.RunRequest(spec=spec).SerializeToString())
                await ended(executions, f"run-{number}")
            grown = await settled(served) - before
            cut = await executions.Run(execution_pb.RunRequest(spec=python("print('x' * 1_000_000)")))
            assert not cut.HasField("finished")
        assert 64 * MIB < grown < 300 * MIB
        async with asyncio.timeout(PATIENCE_S):
            while True:
                whole = await executions.Run(execution_pb.RunRequest(spec=python("print('y' * 1_000_000)")))
                if whole.HasField("finished"):
                    break
        assert whole.stdout == b"y" * 1_000_000 + b"\n"


async def ended(executions: Any, execution_id: str) -> None:
    """Waits until an execution that was just asked for has ended."""
    request = execution_pb.WaitExecutionRequest(execution_id=execution_id)
    async with asyncio.timeout(PATIENCE_S):
        while await code_of(executions.WaitExecution(request)) is grpc.StatusCode.NOT_FOUND:
            pass


async def test_uploads_that_stall_cost_little_and_leave_no_file():
    async with daemon_process() as served:
        await served.create()
        _, files, _ = stubs(served)
        before = await settled(served)
        opened = file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id="box", path="stalled"))
        calls = []
        for _ in range(20):
            call = files.WriteFile()
            await call.write(opened)
            await call.write(file_pb.WriteFileRequest(data=bytes(64 * 1024)))
            calls.append(call)
        grown = await settled(served) - before
        for call in calls:
            call.cancel()
        listed = files.ListDirectory(file_pb.ListDirectoryRequest(sandbox_id="box", path="."))
        names = [entry.name async for page in listed for entry in page.files]
        assert "stalled" not in names
        assert grown < 16 * MIB


async def test_messages_that_are_half_there_cost_what_was_sent_of_them():
    async with daemon_process(listen__calls_max="128") as served:
        before = await settled(served)
        async with connection(served.socket) as client:
            reading = asyncio.create_task(client.closed())
            for number in range(128):
                client.begin(2 * number + 1, RUN)
                client.frame(http2.DATA, 0, 2 * number + 1, b"\0" + (4 * MIB - 100).to_bytes(4) + bytes(16_000))
            await client.drain()
            assert await served.answers()
            grown = await settled(served) - before
            reading.cancel()
            await asyncio.wait([reading])
        assert grown < 64 * MIB
