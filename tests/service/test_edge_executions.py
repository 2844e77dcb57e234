"""Executions and contexts by name over a real gRPC server: get, list, wait, signal, open, close, reset."""

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message
from grpc import aio
from ms_enclave.v1 import context_service_pb2 as context_pb
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved import model
from tests.service.edge import Edge, fields, reason, serving

SIGNAL = execution_pb.Signal(signal=15, leader_only=True)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with serving() as edge:
        yield edge


async def refused(edge: Edge, method: str, request: Message) -> aio.AioRpcError:
    stub = edge.context_stub if "Context" in method else edge.execution_stub
    with pytest.raises(aio.AioRpcError) as caught:
        await getattr(stub, method)(request)
    return caught.value


async def test_an_execution_is_shown(edge: Edge):
    response = await edge.execution_stub.GetExecution(execution_pb.GetExecutionRequest(execution_id="run"))
    shown = response.execution
    assert (shown.execution_id, shown.sandbox_id, shown.tool) == ("run", "box", "python_executor")
    assert (shown.readers, shown.awaiting_input, shown.context) == (2, True, "default")
    assert shown.state == execution_pb.EXECUTION_STATE_RUNNING
    assert shown.create_time.ToJsonString() == "2026-01-02T03:04:05.678Z"


async def test_executions_are_listed_by_sandbox_and_state_in_pages(edge: Edge):
    response = await edge.execution_stub.ListExecutions(
        execution_pb.ListExecutionsRequest(
            sandbox_id="box", state=execution_pb.EXECUTION_STATE_ENDED, page_size=7, page_token="t"
        )
    )
    assert edge.executions.listed == [("box", False, 7, "t")]
    assert [each.execution_id for each in response.executions] == ["run"]
    assert response.next_page_token == "next"
    await edge.execution_stub.ListExecutions(execution_pb.ListExecutionsRequest())
    assert edge.executions.listed[1:] == [("", None, 0, "")]


async def test_an_execution_is_waited_for(edge: Edge):
    request = execution_pb.WaitExecutionRequest(execution_id="run", sandbox_id="box", wait_s=1.5)
    response = await edge.execution_stub.WaitExecution(request)
    assert edge.executions.listed == [("run", "box", 1.5)]
    assert response.execution.state == execution_pb.EXECUTION_STATE_ENDED
    assert response.execution.finished.verdict == execution_pb.VERDICT_EXITED


async def test_a_signal_is_sent_by_name(edge: Edge):
    request = execution_pb.SignalExecutionRequest(execution_id="run", signal=SIGNAL)
    await edge.execution_stub.SignalExecution(request)
    assert await edge.executions.execution.received.get() == ("signal", 15, True)


async def test_a_detached_run_is_asked_for(edge: Edge):
    spec = execution_pb.ExecutionSpec(sandbox_id="box", tool="shell_executor", parameters_json="{}", detach=True)
    await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec))
    assert edge.executions.ran == [model.ToolCall("box", "shell_executor", {}, detach=True)]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetExecution", execution_pb.GetExecutionRequest(execution_id="other")),
        ("WaitExecution", execution_pb.WaitExecutionRequest(execution_id="other")),
        ("SignalExecution", execution_pb.SignalExecutionRequest(execution_id="other", signal=SIGNAL)),
    ],
)
async def test_an_execution_that_is_not_there_is_not_found(edge: Edge, method: str, request_: Message):
    error = await refused(edge, method, request_)
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetExecution", execution_pb.GetExecutionRequest(), "execution_id"),
        ("GetExecution", execution_pb.GetExecutionRequest(execution_id="a b"), "execution_id"),
        ("GetExecution", execution_pb.GetExecutionRequest(execution_id="run", sandbox_id="../x"), "sandbox_id"),
        ("WaitExecution", execution_pb.WaitExecutionRequest(), "execution_id"),
        ("WaitExecution", execution_pb.WaitExecutionRequest(execution_id="run", wait_s=3601), "wait_s"),
        ("ListExecutions", execution_pb.ListExecutionsRequest(sandbox_id="A B"), "sandbox_id"),
        ("ListExecutions", execution_pb.ListExecutionsRequest(state=99), "state"),  # type: ignore[arg-type]
        ("SignalExecution", execution_pb.SignalExecutionRequest(signal=SIGNAL), "execution_id"),
        ("SignalExecution", execution_pb.SignalExecutionRequest(execution_id="run"), "signal.signal"),
        ("OpenContext", context_pb.OpenContextRequest(name="c"), "sandbox_id"),
        ("OpenContext", context_pb.OpenContextRequest(sandbox_id="box"), "name"),
        ("OpenContext", context_pb.OpenContextRequest(sandbox_id="box", name="a/b"), "name"),
        ("CloseContext", context_pb.CloseContextRequest(sandbox_id="box", name="x" * 65), "name"),
        ("ResetContext", context_pb.ResetContextRequest(sandbox_id="box"), "name"),
        ("ListContexts", context_pb.ListContextsRequest(), "sandbox_id"),
    ],
)
async def test_a_malformed_call_names_the_field(edge: Edge, method: str, request_: Message, field: str):
    assert fields(await refused(edge, method, request_)) == [field]
    assert edge.executions.listed == []
    assert edge.contexts.asked == []
    assert edge.executions.execution.received.empty()


async def test_a_context_is_opened_and_shown(edge: Edge):
    response = await edge.context_stub.OpenContext(context_pb.OpenContextRequest(sandbox_id="box", name="third"))
    shown = response.context
    assert (shown.name, shown.sandbox_id, shown.calls, shown.alive) == ("third", "box", 3, True)
    assert (shown.execution_id, shown.queued) == ("run", 1)
    assert edge.contexts.asked == [("open", "box", "third")]


async def test_contexts_are_listed_by_name(edge: Edge):
    response = await edge.context_stub.ListContexts(context_pb.ListContextsRequest(sandbox_id="box"))
    assert [context.name for context in response.contexts] == ["default", "second"]


async def test_contexts_are_closed_and_reset(edge: Edge):
    await edge.context_stub.CloseContext(context_pb.CloseContextRequest(sandbox_id="box", name="second"))
    response = await edge.context_stub.ResetContext(context_pb.ResetContextRequest(sandbox_id="box", name="default"))
    assert response.context.name == "default"
    assert edge.contexts.asked == [("close", "box", "second"), ("reset", "box", "default")]


async def test_a_context_that_is_not_open_is_not_found(edge: Edge):
    error = await refused(edge, "CloseContext", context_pb.CloseContextRequest(sandbox_id="box", name="other"))
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "CONTEXT_NOT_FOUND")
