"""What only a client without our SDK can send: the daemon answers with a status that says why, and goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.failures.ground import PATIENCE_S, DaemonProcess, Stubs
from tests.service.edge import details, fields, reason

MIB = 1024 * 1024
TOO_MUCH = 50_000_000


def run_request(sandbox: Sandbox, parameters_json: str, **changes: Any) -> execution_pb.RunRequest:
    spec = execution_pb.ExecutionSpec(
        sandbox_id=sandbox.id, tool="python_executor", parameters_json=parameters_json, **changes
    )
    return execution_pb.RunRequest(spec=spec)


async def refusal(call: Any) -> aio.AioRpcError:
    """The error with which a call ends, in time."""
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(aio.AioRpcError) as caught:
            await call
    assert "Traceback" not in (caught.value.details() or "")
    return caught.value


async def test_fifty_megabytes_in_a_message_are_too_much_for_every_kind_of_call(sandbox: Sandbox, stubs: Stubs):
    request = run_request(sandbox, json.dumps({"code": "#" * TOO_MUCH}))
    error = await refusal(stubs.executions.Run(request))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def opening() -> AsyncIterator[execution_pb.ExecuteRequest]:
        yield execution_pb.ExecuteRequest(start=request.spec)

    async def upload() -> AsyncIterator[file_pb.WriteFileRequest]:
        yield file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id=sandbox.id, path="large"))
        yield file_pb.WriteFileRequest(data=bytes(TOO_MUCH))

    error = await refusal(stubs.executions.Execute(opening()).read())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = await refusal(stubs.files.WriteFile(upload()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_parameters_have_a_limit_of_their_own_below_that(sandbox: Sandbox, stubs: Stubs):
    error = await refusal(stubs.executions.Run(run_request(sandbox, json.dumps({"code": "#" * (2 * MIB)}))))
    assert fields(error) == ["spec.parameters_json"]
    assert "FileService" in (error.details() or "")


@pytest.mark.parametrize(
    ("parameters_json", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"code": "1", "code": "2"}', "twice"),
        ('{"code": "1", "timeout": NaN}', "NaN"),
        ('{"code": "1", "timeout": -Infinity}', "Infinity"),
        ('{"code": "1", "timeout": 1e999}', "too large"),
        ('{"code": "\\ud800"}', "surrogate"),
        ('{"code": "1", "timeout": ' + "9" * 5000 + "}", "digits"),
        ('{"a":' * 5_000, "nested too deeply"),
        ('{"a":' * 100_000, "more than 20000 strings, commas and brackets"),
    ],
    ids=lambda value: value[:30],
)
async def test_parameters_that_are_no_json_are_refused(
    sandbox: Sandbox, stubs: Stubs, parameters_json: str, words: str
):
    error = await refusal(stubs.executions.Run(run_request(sandbox, parameters_json)))
    assert fields(error) == ["spec.parameters_json"]
    assert words in (error.details() or "")


@pytest.mark.parametrize(
    ("parameters_json", "field"),
    [
        ('{"code": "1", "colour": "red"}', "parameters.colour"),
        ("{}", "parameters.code"),
        ('{"code": "1", "timeout": -1}', "parameters.timeout"),
    ],
)
async def test_parameters_that_the_tool_does_not_know_are_refused(
    sandbox: Sandbox, stubs: Stubs, parameters_json: str, field: str
):
    assert fields(await refusal(stubs.executions.Run(run_request(sandbox, parameters_json)))) == [field]


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), float("-inf")])
async def test_a_timeout_that_is_none_is_refused(sandbox: Sandbox, stubs: Stubs, timeout_s: float):
    error = await refusal(stubs.executions.Run(run_request(sandbox, '{"code": "1"}', timeout_s=timeout_s)))
    assert fields(error) == ["spec.timeout_s"]


async def test_strings_that_are_no_utf8_are_refused_in_every_service(sandbox: Sandbox, stubs: Stubs):
    bad = b"\xff\xfe\xed\xa0\x80"
    field_one = b"\x0a" + bytes([len(bad)]) + bad  # field 1, a string
    nested = b"\x0a" + bytes([len(field_one)]) + field_one  # in field 1, a message
    for method, message in {
        "/ms_enclave.v1.ExecutionService/Run": nested,
        "/ms_enclave.v1.SandboxService/CreateSandbox": field_one,
        "/ms_enclave.v1.SandboxService/DeleteSandbox": field_one,
        "/ms_enclave.v1.ToolService/ListTools": field_one,
        "/ms_enclave.v1.ExecutionService/CancelExecution": field_one,
    }.items():
        error = await refusal(stubs.channel.unary_unary(method)(message))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), method
        assert "UTF-8" in (error.details() or "")
    reading = stubs.channel.unary_stream("/ms_enclave.v1.FileService/ReadFile")(field_one)
    assert (await refusal(reading.read())).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_nul_in_a_path_is_refused(sandbox: Sandbox, stubs: Stubs):
    request = file_pb.ReadFileRequest(sandbox_id=sandbox.id, path="a\0b")
    assert fields(await refusal(stubs.files.ReadFile(request).read())) == ["path"]


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"privileged": True}, "privileged"),
        ({"network_enabled": True}, "network"),
        ({"network": "host"}, "network"),
        ({"volumes": [sandbox_pb.Volume(host_path="/", bind="/host")]}, "volumes"),
        ({"ports": [sandbox_pb.PortMapping(container_port="80/tcp", host_port=80)]}, "ports"),
        ({"extra_hosts": {"a": "10.0.0.1"}}, "extra_hosts"),
        ({"command": ["sh"]}, "command"),
        ({"pids_limit": 1_000_000}, "resources"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_the_policy_does_not_grant_is_denied_with_rule_and_field(
    stubs: Stubs, spec: dict[str, Any], rule: str
):
    request = sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(**spec))
    error = await refusal(stubs.sandboxes.CreateSandbox(request))
    assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")
    info: Any = details(error)["ErrorInfo"]
    assert (info.metadata["rule"], info.metadata["field"]) == (rule, f"spec.{next(iter(spec))}")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"memory_limit_bytes": 0}, "spec.memory_limit_bytes"),
        ({"memory_limit_bytes": -1}, "spec.memory_limit_bytes"),
        ({"cpu_limit": 0}, "spec.cpu_limit"),
        ({"cpu_limit": float("nan")}, "spec.cpu_limit"),
        ({"cpu_limit": float("inf")}, "spec.cpu_limit"),
        ({"pids_limit": -1}, "spec.pids_limit"),
        ({"ttl_s": float("nan")}, "spec.ttl_s"),
        ({"tmp_size_bytes": -(2**63)}, "spec.tmp_size_bytes"),
        ({"working_dir": "/proc"}, "spec.working_dir"),
        ({"env_vars": {"A\0": "b"}}, "spec.env_vars"),
    ],
    ids=str,
)
async def test_malformed_limits_are_refused(stubs: Stubs, spec: dict[str, Any], field: str):
    request = sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(**spec))
    assert fields(await refusal(stubs.sandboxes.CreateSandbox(request))) == [field]


async def test_too_large_headers_are_refused(sandbox: Sandbox, stubs: Stubs):
    request = run_request(sandbox, '{"code": "1"}')
    error = await refusal(stubs.executions.Run(request, metadata=(("x-large", "y" * 20_000),)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_grpc_get_nothing(sandbox: Sandbox, stubs: Stubs, daemon: Any):
    for nonsense in (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
    ):
        reader, writer = await asyncio.open_unix_connection(daemon.socket)
        writer.write(nonsense)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        assert b"Traceback" not in answer
        writer.close()


@pytest.mark.parametrize("cut", ["cancelled", "broken off", "too large"])
async def test_an_upload_that_is_cut_leaves_what_was_there_before(
    sandbox: Sandbox, stubs: Stubs, daemon: DaemonProcess, cut: str
):
    """gRPC tells the daemon of the cut a moment after it has told it that nothing more comes."""
    opening = file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id=sandbox.id, path="kept"))
    await sandbox.put_file("kept", "what was there before")
    for _ in range(20):
        async with aio.insecure_channel(daemon.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = Stubs(channel).files.WriteFile()
            await call.write(opening)
            await call.write(file_pb.WriteFileRequest(data=b"half of it"))
            if cut == "cancelled":
                call.cancel()
            elif cut == "too large":
                await call.write(file_pb.WriteFileRequest(data=bytes(5 * MIB)))
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with asyncio.timeout(PATIENCE_S):
        while (await sandbox.refresh()).metadata["active_executions"]:
            pass
    assert await sandbox.read_file("kept") == b"what was there before"
    listed = await sandbox.execute_command("ls -A; rm kept")
    assert listed.stdout == "kept\n"
