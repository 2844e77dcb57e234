"""Clients that take as many calls as they can get, do not finish them, take them back, or read no answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import system_service_pb2_grpc

from enclaved.runtime.base import LABEL_ID
from enclaved.services import _limits
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import details, fields, reason
from tests.service.hostile import http2
from tests.service.hostile.http2 import connection
from tests.service.hostile.process import OWN_CONNECTION, code_of
from tests.service.keys.ground import revoke, shown, token

GET_INFO = "/ms_enclave.v1.SystemService/GetInfo"
EXECUTE = "/ms_enclave.v1.ExecutionService/Execute"
RUN = "/ms_enclave.v1.ExecutionService/Run"
WATCH = "/ms_enclave.v1.SandboxService/WatchSandboxes"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CALLS = 16
LASTING = 14


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A daemon with few places."""
    async with short_directory() as folder:
        settings = settings_in(folder, listen__calls_max=str(CALLS), listen__tcp="127.0.0.1:0")
        async with daemon(settings) as running:
            yield running


async def handled(running: Running, method: str, code: str) -> float:
    """How many calls of a method ended with a code."""
    for line in (await running.get("/metrics"))[1].splitlines():
        if line.startswith("grpc_server_handled_total") and f'"{method}"' in line and f'"{code}"' in line:
            return float(line.rpartition(" ")[2])
    return 0.0


async def until_handled(running: Running, method: str, code: str, count: int) -> None:
    """Waits until so many calls of a method have ended with a code."""
    async with asyncio.timeout(PATIENCE_S):
        while await handled(running, method, code) < count:
            pass


async def watch(running: Running) -> Any:
    """Begins to watch sandboxes, and is told that it does."""
    call = running.sandbox_stub.WatchSandboxes(sandbox_pb.WatchSandboxesRequest())
    assert await call.read() is not aio.EOF
    return call


async def test_calls_that_last_leave_places_for_calls_that_do_not(running: Running):
    calls = [await watch(running) for _ in range(LASTING)]
    with pytest.raises(aio.AioRpcError) as caught:
        await watch(running)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(caught.value) == "LIMIT_REACHED"
    assert "RetryInfo" in details(caught.value)
    assert "listen.calls_max" in (caught.value.details() or "")
    await running.system_stub.GetInfo(system_pb.GetInfoRequest())
    calls[0].cancel()
    await until_handled(running, "WatchSandboxes", "Canceled", 1)
    calls.append(await watch(running))
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("method", [GET_INFO, RUN, EXECUTE, WATCH, REFLECT])
async def test_calls_whose_message_never_comes_give_their_places_back(
    running: Running, method: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_limits, "FIRST_MESSAGE_S", 0.3)
    async with connection(running.settings.listen.unix) as client:
        for stream in range(1, 2 * CALLS, 2):
            client.begin(stream, method)
        ended = set()
        async for frame in client.frames():
            if frame.kind == http2.HEADERS and frame.flags & http2.END_STREAM:
                ended.add(frame.stream)
            if len(ended) == CALLS:
                break
        assert len(ended) == CALLS
    await running.system_stub.GetInfo(system_pb.GetInfoRequest())


async def test_a_message_that_comes_slowly_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_limits, "FIRST_MESSAGE_S", 0.3)
    async with connection(running.settings.listen.unix) as client:
        client.begin(1, GET_INFO)
        client.frame(http2.DATA, 0, 1, b"\0\0\1\0\0" + bytes(1000))
        assert await client.until(http2.HEADERS, 1, http2.END_STREAM) is not None
    await until_handled(running, "GetInfo", "InvalidArgument", 1)


async def test_a_call_without_its_message_is_malformed(running: Running):
    call: Any = running.channel.stream_unary(GET_INFO)()
    await call.done_writing()
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert fields(caught.value) == ["message"]


async def test_one_connection_over_tcp_takes_its_share_and_another_one_is_served(caplog: pytest.LogCaptureFixture):
    async with short_directory() as folder:
        flags = {"listen__calls_max": "32", "listen__client_calls_max": "4", "listen__tcp": "127.0.0.1:0"}
        async with daemon(settings_in(folder, **flags)) as running:
            address = running.addresses.tcp
            async with aio.insecure_channel(address, options=OWN_CONNECTION) as one:
                greedy: Any = system_service_pb2_grpc.SystemServiceStub(one)  # type: ignore[arg-type]
                held = [one.stream_unary(GET_INFO)() for _ in range(4)]
                for call in held:
                    await call.wait_for_connection()
                async with asyncio.timeout(PATIENCE_S):
                    while (code := await code_of(greedy.GetInfo(system_pb.GetInfoRequest()))) is grpc.StatusCode.OK:
                        pass
                assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
                async with aio.insecure_channel(address, options=OWN_CONNECTION) as other:
                    stub: Any = system_service_pb2_grpc.SystemServiceStub(other)  # type: ignore[arg-type]
                    await stub.GetInfo(system_pb.GetInfoRequest())
                for call in held:
                    call.cancel()


@pytest.mark.parametrize("method", [GET_INFO, RUN, EXECUTE, WATCH])
async def test_calls_that_are_taken_back_at_once_leave_nothing(running: Running, method: str):
    await running.create()
    message = execution_pb.RunRequest(spec=python("1")).SerializeToString()
    async with connection(running.settings.listen.unix) as client:
        reading = asyncio.create_task(client.closed())
        for stream in range(1, 5001, 2):
            client.begin(stream, method)
            if stream % 3:
                client.message(stream, message if method == RUN else b"")
            client.reset(stream)
            if stream % 501 == 0:
                await client.drain()
        await running.system_stub.GetInfo(system_pb.GetInfoRequest())
        reading.cancel()
        await asyncio.wait([reading])
    async with asyncio.timeout(PATIENCE_S):
        while "grpc_server_handled_total" not in (text := (await running.get("/metrics"))[1]) or unfinished(text):
            pass
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))


def unfinished(text: str) -> float:
    """How many calls have begun and not ended."""
    sums = {"started": 0.0, "handled": 0.0}
    for line in text.splitlines():
        for name in sums:
            if line.startswith(f"grpc_server_{name}_total{{"):
                sums[name] += float(line.rpartition(" ")[2])
    return sums["started"] - sums["handled"]


async def test_an_answer_that_is_not_taken_holds_its_place_until_its_client_goes(running: Running):
    await running.create()
    request = execution_pb.RunRequest(spec=python("print('x' * 500_000)")).SerializeToString()
    async with connection(running.settings.listen.unix, window=0) as client:
        for stream in range(1, 2 * LASTING, 2):
            client.begin(stream, RUN)
            client.message(stream, request)
        await until_handled(running, "Run", "OK", LASTING)
        with pytest.raises(aio.AioRpcError) as caught:
            await running.execution_stub.Run(execution_pb.RunRequest(spec=python("1")))
        assert reason(caught.value) == "LIMIT_REACHED"
    run = execution_pb.RunRequest(spec=python("print(1)"))
    async with asyncio.timeout(PATIENCE_S):
        while (code := await code_of(running.execution_stub.Run(run))) is grpc.StatusCode.RESOURCE_EXHAUSTED:
            pass
    assert code is grpc.StatusCode.OK


async def test_a_token_that_is_revoked_gives_back_the_places_of_answers_that_it_does_not_take(running: Running):
    await running.create()
    secret = token(running.settings, "gone")
    request = execution_pb.RunRequest(spec=python("print('x' * 500_000)")).SerializeToString()
    run = execution_pb.RunRequest(spec=python("print(1)"))
    async with connection(running.settings.listen.unix, window=0) as client:
        for stream in range(1, 2 * LASTING, 2):
            client.begin(stream, RUN, shown(secret))
            client.message(stream, request)
        await until_handled(running, "Run", "OK", LASTING)
        assert await code_of(running.execution_stub.Run(run)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        revoke(running.settings, "gone")
        async with asyncio.timeout(PATIENCE_S):
            while (code := await code_of(running.execution_stub.Run(run))) is grpc.StatusCode.RESOURCE_EXHAUSTED:
                pass
        assert code is grpc.StatusCode.OK


async def test_a_thousand_executions_in_one_sandbox_are_as_many_as_there_may_be():
    async with short_directory() as folder:
        settings = settings_in(folder, limits__executions_per_sandbox_max="4", listen__calls_max="2048")
        async with daemon(settings) as running:
            await running.create()
            stub = running.execution_stub
            answers = await asyncio.gather(
                *(stub.Run(execution_pb.RunRequest(spec=sleep(detach=True))) for _ in range(1000)),
                return_exceptions=True,
            )
            refused = [error for error in answers if isinstance(error, aio.AioRpcError)]
            assert len(refused) == 996
            assert {reason(error) for error in refused} == {"LIMIT_REACHED"}
            listed = await stub.ListExecutions(execution_pb.ListExecutionsRequest(sandbox_id="box"))
            assert len(listed.executions) == 4


async def given_up(call: Any) -> None:
    """Waits for the end of a call that was cancelled, or was not, and does not mind how it ends."""
    await asyncio.gather(call, return_exceptions=True)


def sleep(**changes: Any) -> execution_pb.ExecutionSpec:
    """A call that goes on until it is killed."""
    parameters = json.dumps({"command": "sleep 3600"})
    return execution_pb.ExecutionSpec(
        sandbox_id="box", tool="shell_executor", parameters_json=parameters, timeout_s=600, **changes
    )


async def test_one_request_a_hundred_times_at_once_is_one_sandbox_and_one_run(running: Running):
    create = sandbox_pb.CreateSandboxRequest(sandbox_id="box")
    many = 8
    made = await asyncio.gather(
        *(running.sandbox_stub.CreateSandbox(create) for _ in range(many)), return_exceptions=True
    )
    assert len([answer for answer in made if not isinstance(answer, BaseException)]) >= 1
    listed = await running.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())
    assert [sandbox.id for sandbox in listed.sandboxes] == ["box"]
    spec = python("import os; print(os.urandom(8).hex())", execution_id="once")
    answers: list[Any] = []
    while len(answers) < 100:
        answers += await asyncio.gather(
            *(running.execution_stub.Run(execution_pb.RunRequest(spec=spec)) for _ in range(10))
        )
    assert len({answer.stdout for answer in answers}) == 1


async def test_calls_that_are_cancelled_at_any_moment_leave_nothing_behind(running: Running):
    rng = random.Random(1)
    await running.create()
    for _ in range(30):
        calls = [
            running.execution_stub.Run(execution_pb.RunRequest(spec=sleep(detach_grace_s=0.001))) for _ in range(8)
        ]
        tasks = [asyncio.ensure_future(given_up(call)) for call in calls]
        for call in calls:
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)  # lets the daemon come to some point of its work
            call.cancel()
        await asyncio.gather(*tasks)
    async with asyncio.timeout(PATIENCE_S):
        while "enclaved_executions_active 0.0" not in (await running.get("/metrics"))[1]:
            pass
    response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
    assert response.stdout == b"1\n"


async def test_creations_that_are_cancelled_at_any_moment_leave_no_sandbox_that_nobody_knows():
    rng, runtime = random.Random(2), SubprocessRuntime()
    async with short_directory() as folder, daemon(settings_in(folder), runtime=runtime) as running:
        stub = running.sandbox_stub
        for number in range(12):
            call = stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id=f"box-{number}"))
            task = asyncio.ensure_future(given_up(call))
            for _ in range(rng.randrange(400)):
                await asyncio.sleep(0)
            call.cancel()
            await task
        async with asyncio.timeout(PATIENCE_S):
            while True:
                listed = (await stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())).sandboxes
                records = {record.labels[LABEL_ID] for record in await runtime.list_records()}
                settled = all(box.state == sandbox_pb.Sandbox.STATE_RUNNING for box in listed)
                if settled and {box.id for box in listed} == records:
                    break
        for box in listed:
            await stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id=box.id))
        assert await runtime.list_records() == []
        await running.create("after")
