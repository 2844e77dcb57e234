"""What clients write into requests: ids, labels, texts. It is refused, or shown, or logged as what it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core import pool
from enclaved.services import _pages
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import fields, reason
from tests.service.hostile.fuzzing import methods, path_of
from tests.service.hostile.process import daemon_process

IDS = ("../../etc", "a/b", "a\r\nHost: x", "a\0b", "a b", "x" * 1_000_000, "\u202etxt", "box\n", "..", "%2e%2e", "-rf")
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
NAMES = ("sandbox_id", "execution_id", "pool_id")


class CountedRuntime(SubprocessRuntime):
    """Counts what it is asked about single containers."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("create", "start", "stop", "remove", "pause", "unpause", "inspect", "status", "update"):
            type(self).asked += 1
        return super().__getattribute__(name)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    CountedRuntime.asked = 0
    async with short_directory() as folder, daemon(settings_in(folder), runtime=CountedRuntime()) as running:
        yield running


def naming() -> list[tuple[MethodDescriptor, str]]:
    """Every method whose request has an id on top, or in what it opens or starts, with the path of that field."""
    found = []
    for method in methods():
        for field in method.input_type.fields:
            if field.name in NAMES:
                found.append((method, field.name))
            elif field.message_type is not None and not field.is_repeated:
                found += [
                    (method, f"{field.name}.{inner.name}") for inner in field.message_type.fields if inner.name in NAMES
                ]
    return found


def named(method: MethodDescriptor, path: str, text: str) -> bytes:
    """A request that names something."""
    message: Any = message_factory.GetMessageClass(method.input_type)()
    *parents, name = path.split(".")
    target = message
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, name, text)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("text", IDS, ids=range(len(IDS)))
async def test_no_call_takes_what_is_no_id_or_asks_the_engine_about_it(running: Running, text: str):
    outcomes = {}
    for method, path in naming():
        call: Any = running.channel.stream_stream(path_of(method))()
        async with asyncio.timeout(PATIENCE_S):
            try:
                await call.write(named(method, path, text))
                await call.done_writing()
                await call.read()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass
            outcomes[method.name, path] = await call.code()
    assert len(outcomes) > 40
    assert {where: code for where, code in outcomes.items() if code not in REFUSED} == {}
    assert CountedRuntime.asked == 0


@pytest.mark.parametrize(
    "labels",
    [
        {"enclaved.id": "other"},
        {"a=b": "c"},
        {"": "x"},
        {"a\nb": "c"},
        {"a": "x" * 300},
        {"a": "\0"},
        {"x" * 64: "y"},
        {f"key-{number}": "v" for number in range(65)},
    ],
    ids=range(8),
)
async def test_labels_that_are_none_are_refused(running: Running, labels: dict[str, str]):
    with pytest.raises(aio.AioRpcError) as caught:
        await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(labels=labels))
    assert set(fields(caught.value)) == {"labels"}
    assert CountedRuntime.asked == 0


async def test_a_request_that_would_fill_everybodys_listing_is_refused(running: Running):
    spec = sandbox_pb.SandboxSpec(command=["x" * 1000] * 200)
    with pytest.raises(aio.AioRpcError) as caught:
        await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(spec=spec))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "131072" in (caught.value.details() or "")


async def test_however_much_there_is_to_show_a_page_fits_into_a_message(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_pages, "PAGE_BYTES", 40_000)
    for number in range(5):
        spec = sandbox_pb.SandboxSpec(env_vars={"LARGE": "x" * 15_000})
        await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id=f"box-{number}", spec=spec))
    found, token, pages = [], "", 0
    while token or not pages:
        page = await running.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest(page_token=token))
        found += [sandbox.id for sandbox in page.sandboxes]
        token, pages = page.next_page_token, pages + 1
    assert (found, pages) == ([f"box-{number}" for number in range(5)], 3)


async def test_there_are_not_more_pools_than_one_answer_can_show(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "POOLS_MAX", 1)
    pools: Any = pool_service_pb2_grpc.PoolServiceStub(running.channel)  # type: ignore[arg-type]
    await pools.InitializePool(pool_pb.InitializePoolRequest(pool_id="pool", size=1))
    with pytest.raises(aio.AioRpcError) as caught:
        await pools.InitializePool(pool_pb.InitializePoolRequest(pool_id="one-more", size=1))
    assert reason(caught.value) == "LIMIT_REACHED"


@pytest.mark.parametrize("parameters", ['{"code": "\\ud800"}', '{"code": "1", "code": "2"}', "[" * 10_000, "{", "NaN"])
async def test_parameters_that_are_no_json_are_the_callers_fault(running: Running, parameters: str):
    await running.create()
    spec = execution_pb.ExecutionSpec(sandbox_id="box", tool="python_executor", parameters_json=parameters)
    with pytest.raises(aio.AioRpcError) as caught:
        await running.execution_stub.Run(execution_pb.RunRequest(spec=spec))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_code_that_explodes_its_compiler_ends_in_its_sandbox(running: Running):
    await running.create()
    for code in ("(" * 100_000, "x = " + "-" * 200_000 + "1", "a" + ".b" * 100_000, "0x" + "f" * 900_000):
        response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python(code, timeout_s=20)))
        assert response.HasField("finished")
        assert response.finished.verdict not in (
            execution_pb.VERDICT_INTERNAL_ERROR,
            execution_pb.VERDICT_SANDBOX_LOST,
        )
    response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
    assert response.stdout == b"1\n"


async def test_names_that_clients_make_up_are_no_labels_of_metrics(running: Running):
    await running.create()
    before = len((await running.get("/metrics"))[1].splitlines())
    for number in range(100):
        call: Any = running.channel.unary_unary(f"/made.up.Service{number}/Method{number}")
        with pytest.raises(aio.AioRpcError):
            await call(b"")
        spec = execution_pb.ExecutionSpec(sandbox_id="box", tool=f"tool-{number}", parameters_json="{}")
        with pytest.raises(aio.AioRpcError):
            await running.execution_stub.Run(execution_pb.RunRequest(spec=spec))
    text = (await running.get("/metrics"))[1]
    assert "made.up" not in text
    assert "tool-" not in text
    assert len(text.splitlines()) - before < 40


async def test_the_log_has_one_object_for_each_line_whatever_clients_write():
    evil = 'x\n{"level": "error", "event": "forged"}\r\n\x1b[31m\u2028'
    async with daemon_process() as served:
        await served.create()
        for method, path in naming():
            call: Any = served.channel.stream_stream(path_of(method))(timeout=PATIENCE_S)
            try:
                await call.write(named(method, path, evil))
                await call.done_writing()
                await call.read()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                pass
            await call.code()
        spec = python(f"raise ValueError({evil!r})")
        run: Any = served.channel.unary_unary("/ms_enclave.v1.ExecutionService/Run")
        await run(execution_pb.RunRequest(spec=spec).SerializeToString())
        events = [json.loads(line)["event"] for line in served.log.splitlines()]
        assert "forged" not in events
        assert "\x1b" not in served.log
