"""A real gRPC server on a unix socket over the fakes of the core, and a client for it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from ms_enclave.v1 import (
    context_service_pb2_grpc,
    execution_service_pb2_grpc,
    file_service_pb2_grpc,
    image_service_pb2_grpc,
    pool_service_pb2_grpc,
    sandbox_service_pb2_grpc,
    system_service_pb2_grpc,
    tool_service_pb2_grpc,
)

from enclaved.core.access import Access, Door
from enclaved.core.tokens import Tokens
from enclaved.metrics import Metrics
from enclaved.model import LOCAL, SCOPES
from enclaved.services import Calls, Doors, Health, add_services, make_server
from tests.service.core_fakes import (
    FakeContexts,
    FakeExecutions,
    FakeFiles,
    FakeImages,
    FakePools,
    FakeSandboxes,
    FakeSystem,
)


@dataclass
class Edge:
    """Everything that a test of the edge needs."""

    socket: Path
    channel: aio.Channel
    metrics: Metrics
    calls: Calls
    health: Health = field(init=False)
    sandboxes: FakeSandboxes = field(default_factory=FakeSandboxes)
    executions: FakeExecutions = field(default_factory=FakeExecutions)
    contexts: FakeContexts = field(default_factory=FakeContexts)
    files: FakeFiles = field(default_factory=FakeFiles)
    pools: FakePools = field(default_factory=FakePools)
    images: FakeImages = field(default_factory=FakeImages)

    def __post_init__(self) -> None:
        channel: Any = self.channel
        self.sandbox_stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(channel)
        self.execution_stub: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        self.context_stub: Any = context_service_pb2_grpc.ContextServiceStub(channel)
        self.tool_stub: Any = tool_service_pb2_grpc.ToolServiceStub(channel)
        self.file_stub: Any = file_service_pb2_grpc.FileServiceStub(channel)
        self.pool_stub: Any = pool_service_pb2_grpc.PoolServiceStub(channel)
        self.image_stub: Any = image_service_pb2_grpc.ImageServiceStub(channel)
        self.system_stub: Any = system_service_pb2_grpc.SystemServiceStub(channel)

    def handled(self, service: str, method: str, code: str, kind: str = "unary") -> float:
        """How many calls of a method ended with a code."""
        labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
        return self.metrics.value("grpc_server_handled_total", **labels)


@asynccontextmanager
async def serving() -> AsyncIterator[Edge]:
    """Serves the fakes for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="edge") as folder:
        socket = Path(folder) / "s.sock"
        metrics, calls = Metrics(version="0"), Calls()
        tokens = Tokens(Path(folder), metrics)
        access = Access(tokens, metrics, lambda caller: SCOPES)
        server = make_server(metrics, calls, Doors(Door(access, "unix", LOCAL), Door(access, "tcp", None)))
        async with aio.insecure_channel(f"unix:{socket}") as channel:
            edge = Edge(socket, channel, metrics, calls)
            services: Any = {
                "sandboxes": edge.sandboxes,
                "executions": edge.executions,
                "contexts": edge.contexts,
                "files": edge.files,
                "pools": edge.pools,
                "images": edge.images,
            }
            edge.health = add_services(server, **services, system=FakeSystem())  # type: ignore[arg-type]
            server.add_insecure_port(f"unix:{socket}")
            await server.start()
            try:
                yield edge
            finally:
                await server.stop(0)
                tokens.close()


def details(error: aio.AioRpcError) -> dict[str, Message]:
    """Unpacks the details of an error by the names of their messages."""
    trailer = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(trailer)  # type: ignore[arg-type]
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        packed.Unpack(found[name])
    return found


def reason(error: aio.AioRpcError) -> str:
    """The stable reason of an error."""
    info: Any = details(error)["ErrorInfo"]
    return str(info.reason)


def fields(error: aio.AioRpcError) -> list[str]:
    """The fields that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad: Any = details(error)["BadRequest"]
    return [violation.field for violation in bad.field_violations]
