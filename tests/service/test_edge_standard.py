"""The standard services beside ours: health, and reflection as buf and grpcurl use it."""

import asyncio
import json
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ms_enclave.v1 import file_service_pb2 as file_pb

from enclaved.services.file_service import FileService
from tests.service.core_fakes import FakeFiles
from tests.service.edge import Edge, serving

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
OURS = [
    f"ms_enclave.v1.{name}"
    for name in ("ContextService", "ExecutionService", "FileService", "SandboxService", "SystemService", "ToolService")
]


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with serving() as edge:
        yield edge


@pytest.mark.parametrize("service", ["", *OURS])
async def test_every_service_has_a_health(edge: Edge, service: str):
    stub = health_pb2_grpc.HealthStub(edge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    await edge.health.set_serving(False)
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING


async def test_a_service_that_is_not_there_has_no_health(edge: Edge):
    stub = health_pb2_grpc.HealthStub(edge.channel)
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert edge.handled("grpc.health.v1.Health", "Check", "NotFound") == 1


async def test_whoever_watches_is_told_of_a_change_also_after_another_left(edge: Edge):
    stub = health_pb2_grpc.HealthStub(edge.channel)
    first, second = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
    assert [(await call.read()).status for call in (first, second)] == [SERVING, SERVING]
    first.cancel()
    await edge.health.set_serving(False)
    assert (await second.read()).status == NOT_SERVING
    second.cancel()


async def test_health_answers_while_the_edge_is_closed(edge: Edge):
    edge.calls.close()
    stub = health_pb2_grpc.HealthStub(edge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def buf_curl(edge: Edge, *arguments: str) -> str:
    """Runs ``buf curl``, which speaks gRPC and finds everything out by reflection, as grpcurl does."""
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    fixed = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--unix-socket", str(edge.socket)]
    process = await asyncio.create_subprocess_exec(
        buf, *fixed, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return (out or err).decode()


async def test_buf_lists_the_methods_by_reflection(edge: Edge):
    listed = (await buf_curl(edge, "--list-methods", "http://localhost")).split()
    assert {method.rpartition("/")[0] for method in listed} >= {*OURS, "grpc.health.v1.Health"}
    assert "ms_enclave.v1.SandboxService/CreateSandbox" in listed


async def test_buf_calls_a_method_by_reflection(edge: Edge):
    method = "http://localhost/ms_enclave.v1.SandboxService/GetSandbox"
    answer = json.loads(await buf_curl(edge, "-d", '{"sandboxId": "box"}', method))
    assert answer["sandbox"]["state"] == "STATE_RUNNING"


async def test_buf_shows_the_details_of_an_error(edge: Edge):
    method = "http://localhost/ms_enclave.v1.SandboxService/GetSandbox"
    answer = json.loads(await buf_curl(edge, "-d", '{"sandboxId": "other"}', method))
    assert answer["code"] == "not_found"
    assert {detail["type"] for detail in answer["details"]} == {"google.rpc.ErrorInfo", "google.rpc.ResourceInfo"}


class Stalled:
    """A client that opens an upload and then says nothing; and the context of its call."""

    def __init__(self) -> None:
        self.first = [file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id="box", path="x"))]
        self.code: grpc.StatusCode | None = None

    def __aiter__(self) -> "Stalled":
        return self

    async def __anext__(self) -> file_pb.WriteFileRequest:
        if self.first:
            return self.first.pop()
        await asyncio.Event().wait()
        raise StopAsyncIteration

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise aio.AbortError


async def test_an_upload_that_stalls_is_ended_and_writes_nothing():
    files, client = FakeFiles(), Stalled()
    service = FileService(files, upload_idle_s=0.01)  # type: ignore[arg-type]
    with pytest.raises(aio.AbortError):
        await service.write_file(client, client)  # type: ignore[arg-type]
    assert client.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert files.content == b""
