"""Contexts of a whole daemon over gRPC: opened, used, listed, reset and closed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import context_service_pb2 as pb
from ms_enclave.v1 import context_service_pb2_grpc
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import reason


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        await running.create()
        yield running


@pytest.fixture
def contexts(running: Running) -> Any:
    """The stub of the service."""
    return context_service_pb2_grpc.ContextServiceStub(running.channel)  # type: ignore[no-untyped-call]


async def opened(contexts: Any, name: str = "mine") -> pb.Context:
    context: pb.Context = (await contexts.OpenContext(pb.OpenContextRequest(sandbox_id="box", name=name))).context
    return context


async def listed(contexts: Any) -> dict[str, pb.Context]:
    response = await contexts.ListContexts(pb.ListContextsRequest(sandbox_id="box"))
    return {context.name: context for context in response.contexts}


async def run(running: Running, code: str, context: str = "mine", **changes: Any) -> execution_pb.RunResponse:
    spec = python(code, context=context, **changes)
    response: execution_pb.RunResponse = await running.execution_stub.Run(execution_pb.RunRequest(spec=spec))
    return response


async def refusal(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_context_has_variables_of_its_own(running: Running, contexts: Any):
    context = await opened(contexts)
    assert (context.name, context.sandbox_id, context.calls, context.alive) == ("mine", "box", 0, True)
    await run(running, "x = 1", context="")
    await run(running, "x = 2")
    assert (await run(running, "print(x)", context="")).stdout == b"1\n"
    assert (await run(running, "print(x)")).stdout == b"2\n"
    found = await listed(contexts)
    assert {name: context.calls for name, context in found.items()} == {"default": 2, "mine": 2}
    assert list(found) == ["default", "mine"]


async def test_a_context_that_is_open_is_answered_as_it_is(running: Running, contexts: Any):
    await opened(contexts)
    await run(running, "x = 1")
    assert (await opened(contexts)).calls == 1
    assert (await run(running, "print(x)")).stdout == b"1\n"


async def test_a_context_that_nobody_opened_runs_nothing(running: Running, contexts: Any):
    error = await refusal(run(running, "print(1)", context="unknown"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "unknown" in str(error.details())
    assert "unknown" not in await listed(contexts)


async def test_a_reset_forgets_the_variables_and_keeps_the_name(running: Running, contexts: Any):
    await opened(contexts)
    await run(running, "x = 1")
    fresh = (await contexts.ResetContext(pb.ResetContextRequest(sandbox_id="box", name="mine"))).context
    assert (fresh.name, fresh.calls, fresh.alive) == ("mine", 0, True)
    assert (await run(running, "print('x' in globals())")).stdout == b"False\n"


async def test_a_close_ends_what_runs_in_it(running: Running, contexts: Any):
    await opened(contexts)
    call = running.execution_stub.Execute()
    code = "import time; print('here', flush=True); time.sleep(60)"
    await call.write(execution_pb.ExecuteRequest(start=python(code, context="mine", execution_id="sleeper")))
    async with asyncio.timeout(PATIENCE_S):
        assert (await call.read()).event.HasField("started")
        assert (await call.read()).event.HasField("output")
        assert (await listed(contexts))["mine"].execution_id == "sleeper"
        await contexts.CloseContext(pb.CloseContextRequest(sandbox_id="box", name="mine"))
        ended = (await call.read()).event.finished
    assert ended.verdict == execution_pb.VERDICT_CANCELLED
    assert "mine" not in await listed(contexts)


@pytest.mark.parametrize("method", ["CloseContext", "ResetContext"])
async def test_a_context_that_is_not_open_is_not_found(running: Running, contexts: Any, method: str):
    request = getattr(pb, f"{method}Request")(sandbox_id="box", name="none")
    error = await refusal(getattr(contexts, method)(request))
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "CONTEXT_NOT_FOUND")


@pytest.mark.parametrize("method", ["OpenContext", "CloseContext", "ResetContext", "ListContexts"])
async def test_a_sandbox_that_is_not_there_is_not_found(running: Running, contexts: Any, method: str):
    changes = {} if method == "ListContexts" else {"name": "mine"}
    request = getattr(pb, f"{method}Request")(sandbox_id="none", **changes)
    error = await refusal(getattr(contexts, method)(request))
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")


async def test_there_is_a_limit_to_contexts(running: Running, contexts: Any):
    for number in range(16):
        await opened(contexts, f"c{number}")
    error = await refusal(opened(contexts, "c16"))
    assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
    assert len(await listed(contexts)) == 16
