"""What strangers send to a whole daemon: it refuses, names the field, and goes on."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import file_service_pb2_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import details, fields, reason
from tests.service.hostile.fuzzing import mutated
from tests.unit.messages import fill

SERVICES = ("SandboxService", "ExecutionService", "ContextService", "ToolService", "FileService", "SystemService")
OURS_OR_FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,  # a revision that is not kept
    grpc.StatusCode.UNIMPLEMENTED,
}


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        yield running


async def works(running: Running) -> bool:
    """Whether a sandbox can be made and runs code."""
    await running.create("proof")
    response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(6 * 7)", "proof")))
    return bool(response.stdout == b"42\n")


@pytest.mark.parametrize("service", SERVICES)
async def test_mutated_messages_are_refused_and_break_nothing(running: Running, service: str):
    rng = random.Random(service)
    descriptor = descriptor_pool.Default().FindServiceByName(f"ms_enclave.v1.{service}")
    codes = set()
    for method in descriptor.methods:
        message: Any = message_factory.GetMessageClass(method.input_type)
        for _ in range(40):
            data = mutated(fill(message(), rng).SerializeToString(), rng)
            call = running.channel.stream_stream(f"/{descriptor.full_name}/{method.name}")()
            async with asyncio.timeout(PATIENCE_S):
                try:
                    await call.write(data)
                    await call.done_writing()
                    while await call.read() is not aio.EOF:
                        pass
                except (aio.AioRpcError, asyncio.InvalidStateError):
                    pass
                codes.add(await call.code())
    assert codes <= OURS_OR_FINE
    assert await works(running)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"memory_limit_bytes": 0}, "spec.memory_limit_bytes"),
        ({"memory_limit_bytes": -1}, "spec.memory_limit_bytes"),
        ({"memory_limit_bytes": 2**63 - 1}, "spec.memory_limit_bytes"),
        ({"cpu_limit": float("nan")}, "spec.cpu_limit"),
        ({"cpu_limit": 1e99}, "spec.cpu_limit"),
        ({"pids_limit": 0}, "spec.pids_limit"),
        ({"timeout_s": -1}, "spec.timeout_s"),
        ({"timeout_s": float("inf")}, "spec.timeout_s"),
        ({"ttl_s": float("nan")}, "spec.ttl_s"),
        ({"working_dir": "../etc"}, "spec.working_dir"),
        ({"env_vars": {"A=B": "c"}}, "spec.env_vars"),
        ({"env_vars": {"LD_PRELOAD": "/x.so"}}, "spec.env_vars"),
        ({"image": "a b"}, "spec.image"),
    ],
)
async def test_malformed_sandboxes_are_refused_by_field(running: Running, spec: dict[str, Any], field: str):
    with pytest.raises(aio.AioRpcError) as caught:
        await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(**spec)))
    assert fields(caught.value) == [field]


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"privileged": True}, "privileged"),
        ({"network_enabled": True}, "network"),
        ({"network": "host"}, "network"),
        ({"volumes": [sandbox_pb.Volume(host_path="/", bind="/host")]}, "volumes"),
        ({"memory_limit_bytes": 2**40}, "resources"),
    ],
)
async def test_what_policy_does_not_grant_is_refused_by_rule(running: Running, spec: dict[str, Any], rule: str):
    with pytest.raises(aio.AioRpcError) as caught:
        await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(**spec)))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"(policy rule: {rule})" in caught.value.details()


async def test_what_is_not_there_is_not_found(running: Running):
    await running.create()
    unknown_tool = execution_pb.ExecutionSpec(sandbox_id="box", tool="nope", parameters_json="{}")
    calls = {
        "SANDBOX_NOT_FOUND": running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="other")),
        "TOOL_NOT_FOUND": running.execution_stub.Run(execution_pb.RunRequest(spec=unknown_tool)),
        "EXECUTION_NOT_FOUND": running.execution_stub.CancelExecution(
            execution_pb.CancelExecutionRequest(execution_id="other")
        ),
    }
    for wanted, call in calls.items():
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert reason(caught.value) == wanted


async def test_a_tools_own_refusal_is_marked(running: Running):
    await running.create()
    with pytest.raises(aio.AioRpcError) as caught:
        await running.execution_stub.Run(execution_pb.RunRequest(spec=python("")))
    assert fields(caught.value) == ["parameters.code"]
    bad: Any = details(caught.value)["BadRequest"]
    assert (bad.field_violations[0].description, bad.field_violations[0].reason) == ("No code provided", "TOOL_REFUSED")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/passwd", "INVALID_REQUEST"),
        ("../" * 20 + "etc/passwd", "INVALID_REQUEST"),
        ("", "INVALID_REQUEST"),
        ("a\0b", "INVALID_REQUEST"),
        ("x" * 5000, "INVALID_REQUEST"),
        ("missing", "FILE_NOT_FOUND"),
        (".", "FILE_UNUSABLE"),
    ],
)
async def test_paths_that_cannot_be_read_are_refused(running: Running, path: str, wanted: str):
    await running.create()
    channel: Any = running.channel
    call: Any = file_service_pb2_grpc.FileServiceStub(channel).ReadFile(
        file_pb.ReadFileRequest(sandbox_id="box", path=path)
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    assert reason(caught.value) == wanted
