"""Execute and Attach over a real gRPC server: input goes up while events come down, and leaving is not killing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved import errors, model
from tests.service.core_fakes import MOMENT, FakeExecution
from tests.service.edge import Edge, fields, reason, serving

STARTED = model.Started("run", 30.0, {model.STDOUT: 0, model.STDERR: 0}, MOMENT)
FINISHED = model.Finished(model.Verdict.EXITED, exit_code=0)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with serving() as edge:
        yield edge


@pytest.fixture
def execution(edge: Edge) -> FakeExecution:
    return edge.executions.execution


def start(**changes: object) -> execution_pb.ExecuteRequest:
    values = {"sandbox_id": "box", "tool": "python_executor", "parameters_json": "{}", **changes}
    return execution_pb.ExecuteRequest(start=execution_pb.ExecutionSpec(**values))  # type: ignore[arg-type]


def stdin(data: bytes, offset: int | None = None) -> execution_pb.ExecuteRequest:
    return execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=data, offset=offset))


def tell(execution: FakeExecution, *events: model.Event) -> None:
    for event in events:
        execution.events.put_nowait(event)


async def kinds(call: Any) -> list[str]:
    found = []
    while (message := await call.read()) is not aio.EOF:
        found.append(message.event.WhichOneof("event"))
    return found


async def refused(edge: Edge, *requests: execution_pb.ExecuteRequest) -> aio.AioRpcError:
    """Sends these messages and waits for the refusal."""
    call = edge.execution_stub.Execute(iter(requests))
    with pytest.raises(aio.AioRpcError) as caught:
        await kinds(call)
    return caught.value


async def test_events_come_down_in_order_and_the_call_ends_well(edge: Edge, execution: FakeExecution):
    gap = model.Notice(model.NoticeKind.GAP, "lost", model.STDOUT, 2, 5)
    tell(execution, STARTED, model.Output(model.STDOUT, 0, b"hi\xff", 0.1), gap, FINISHED)
    call = edge.execution_stub.Execute(iter([start(stdin=True, execution_id="run")]))
    messages = [message.event async for message in call]
    assert [message.WhichOneof("event") for message in messages] == ["started", "output", "notice", "finished"]
    assert (messages[1].output.data, messages[2].notice.offset) == (b"hi\xff", 2)
    assert await call.code() is grpc.StatusCode.OK
    assert edge.executions.opened == [
        model.ToolCall("box", "python_executor", {}, execution_id="run", stdin=True),
    ]
    assert execution.attached == [({}, False)]
    assert execution.left.is_set()


async def test_input_goes_up_while_output_comes_down(edge: Edge, execution: FakeExecution):
    call = edge.execution_stub.Execute()
    await call.write(start(stdin=True))
    tell(execution, STARTED)
    assert (await call.read()).event.WhichOneof("event") == "started"
    await call.write(stdin(b"one", 0))
    assert await execution.received.get() == ("stdin", b"one", 0)
    tell(execution, model.Output(model.STDOUT, 0, b"got one", 0.1))
    assert (await call.read()).event.output.data == b"got one"
    await call.write(stdin(b"two"))
    await call.write(execution_pb.ExecuteRequest(end_of_input=execution_pb.EndOfInput()))
    acknowledged = execution_pb.Acknowledge(offsets=[execution_pb.ChannelOffset(channel=1, offset=7)])  # type: ignore[arg-type]
    await call.write(execution_pb.ExecuteRequest(acknowledge=acknowledged))
    await call.write(execution_pb.ExecuteRequest(cancel=execution_pb.Cancel()))
    received = [await execution.received.get() for _ in range(4)]
    assert received == [("stdin", b"two", None), ("end",), ("acknowledge", {1: 7}), ("cancel", "its client")]
    tell(execution, FINISHED)
    assert await kinds(call) == ["finished"]


async def test_ending_the_upward_half_changes_nothing(edge: Edge, execution: FakeExecution):
    call = edge.execution_stub.Execute()
    await call.write(start())
    await call.done_writing()
    tell(execution, STARTED)
    assert (await call.read()).event.WhichOneof("event") == "started"
    assert not execution.left.is_set()
    tell(execution, FINISHED)
    assert await kinds(call) == ["finished"]


async def test_input_waits_while_the_program_does_not_read(edge: Edge, execution: FakeExecution):
    execution.may_read.clear()
    call = edge.execution_stub.Execute()
    await call.write(start(stdin=True))
    for n in range(5):
        await call.write(stdin(b"%d" % n))
    assert await execution.received.get() == ("stdin", b"0", None)
    tell(execution, STARTED)
    await call.read()
    assert execution.received.empty()
    execution.may_read.set()
    assert [(await execution.received.get())[1] for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    tell(execution, FINISHED)
    assert await kinds(call) == ["finished"]


async def test_an_end_is_told_while_input_still_waits(edge: Edge, execution: FakeExecution):
    execution.may_read.clear()
    call = edge.execution_stub.Execute()
    await call.write(start(stdin=True))
    await call.write(stdin(b"never read"))
    await execution.received.get()
    tell(execution, STARTED, FINISHED)
    assert await kinds(call) == ["started", "finished"]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_client_that_vanishes_detaches_and_does_not_kill(edge: Edge, execution: FakeExecution):
    call = edge.execution_stub.Execute()
    await call.write(start())
    tell(execution, STARTED)
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        await execution.left.wait()
        await edge.calls.wait_idle()
    assert execution.received.empty()
    assert edge.handled("ms_enclave.v1.ExecutionService", "Execute", "Canceled", "bidi_stream") == 1


async def test_a_client_that_vanishes_while_we_write_detaches_too(edge: Edge, execution: FakeExecution, caplog):
    call = edge.execution_stub.Execute()
    await call.write(start())
    tell(execution, STARTED, *(model.Output(model.STDOUT, n * 65536, b"x" * 65536, 0.1) for n in range(200)))
    await call.read()
    call.cancel()
    async with asyncio.timeout(10):
        await execution.left.wait()
        await edge.calls.wait_idle()
    assert edge.handled("ms_enclave.v1.ExecutionService", "Execute", "Canceled", "bidi_stream") == 1
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


async def test_the_calls_deadline_ends_the_call_and_not_the_execution(edge: Edge, execution: FakeExecution):
    tell(execution, STARTED)
    call = edge.execution_stub.Execute(iter([start()]), timeout=0.1)
    with pytest.raises(aio.AioRpcError) as caught:
        await kinds(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        await execution.left.wait()
    assert execution.received.empty()


async def test_attach_follows_from_offsets(edge: Edge, execution: FakeExecution):
    tell(execution, STARTED, FINISHED)
    request = execution_pb.AttachRequest(
        execution_id="run",
        offsets=[execution_pb.ChannelOffset(channel=execution_pb.CHANNEL_STDOUT, offset=70)],
        observe=True,
    )
    assert await kinds(edge.execution_stub.Attach(request)) == ["started", "finished"]
    assert execution.attached == [({model.STDOUT: 70}, True)]


async def test_execute_can_attach_and_send_on(edge: Edge, execution: FakeExecution):
    call = edge.execution_stub.Execute()
    await call.write(execution_pb.ExecuteRequest(attach=execution_pb.AttachRequest(execution_id="run")))
    await call.write(stdin(b"more", 4))
    assert await execution.received.get() == ("stdin", b"more", 4)
    tell(execution, STARTED, FINISHED)
    assert await kinds(call) == ["started", "finished"]
    assert edge.executions.opened == []


async def test_a_released_offset_is_out_of_range(edge: Edge, execution: FakeExecution):
    execution.refuses = errors.OffsetReleased("stdout", 0, 4096)
    request = execution_pb.AttachRequest(execution_id="run")
    error = await refused(edge, execution_pb.ExecuteRequest(attach=request))
    assert (error.code(), reason(error)) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_RELEASED")
    with pytest.raises(aio.AioRpcError) as caught:
        await kinds(edge.execution_stub.Attach(request))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_an_execution_is_cancelled_by_name(edge: Edge, execution: FakeExecution):
    await edge.execution_stub.CancelExecution(execution_pb.CancelExecutionRequest(execution_id="run"))
    assert await execution.received.get() == ("cancel", "a caller")


async def test_an_execution_that_is_not_there_is_not_found(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.CancelExecution(execution_pb.CancelExecutionRequest(execution_id="other"))
    assert reason(caught.value) == "EXECUTION_NOT_FOUND"


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "message"),
        ([execution_pb.ExecuteRequest()], "message"),
        ([stdin(b"x")], "message"),
        ([execution_pb.ExecuteRequest(cancel=execution_pb.Cancel())], "message"),
        ([start(sandbox_id="")], "start.sandbox_id"),
        ([start(parameters_json="[1]")], "start.parameters_json"),
        ([start(timeout_s=float("nan"))], "start.timeout_s"),
        ([execution_pb.ExecuteRequest(attach=execution_pb.AttachRequest())], "attach.execution_id"),
    ],
)
async def test_a_malformed_first_message_is_refused_and_starts_nothing(edge: Edge, requests, field: str):
    assert fields(await refused(edge, *requests)) == [field]
    assert edge.executions.opened == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (start(), "start"),
        (execution_pb.ExecuteRequest(attach=execution_pb.AttachRequest(execution_id="run")), "attach"),
        (execution_pb.ExecuteRequest(), "message"),
        (stdin(b"x", -1), "stdin.offset"),
        (stdin(b"x" * (2**20 + 1)), "stdin.data"),
        (
            execution_pb.ExecuteRequest(
                acknowledge=execution_pb.Acknowledge(offsets=[execution_pb.ChannelOffset(offset=1)])
            ),
            "acknowledge.offsets[0].channel",
        ),
    ],
    ids=["start", "attach", "empty", "offset", "size", "channel"],
)
async def test_a_malformed_later_message_ends_the_call_and_detaches(
    edge: Edge, execution: FakeExecution, request_: execution_pb.ExecuteRequest, field: str
):
    assert fields(await refused(edge, start(), request_)) == [field]
    assert execution.left.is_set()
    assert execution.received.empty()


@pytest.mark.parametrize(
    "request_",
    [
        execution_pb.ExecuteRequest(signal=execution_pb.Signal(signal=2)),
        execution_pb.ExecuteRequest(resize=execution_pb.TerminalSize(rows=1, columns=1)),
    ],
    ids=["signal", "resize"],
)
async def test_what_is_not_served_yet_says_so(edge: Edge, request_: execution_pb.ExecuteRequest):
    error = await refused(edge, start(), request_)
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_one_who_only_observes_releases_nothing(edge: Edge, execution: FakeExecution):
    attach = execution_pb.AttachRequest(execution_id="run", observe=True)
    acknowledge = execution_pb.ExecuteRequest(acknowledge=execution_pb.Acknowledge())
    assert fields(await refused(edge, execution_pb.ExecuteRequest(attach=attach), acknowledge)) == ["acknowledge"]
    assert execution.received.empty()


async def test_many_streams_end_without_a_trace(edge: Edge, caplog):
    async def one(n: int) -> None:
        call = edge.execution_stub.Execute()
        await call.write(start())
        if n % 2:
            call.cancel()
        else:
            await call.write(start())
            with pytest.raises(aio.AioRpcError):
                await kinds(call)

    await asyncio.gather(*(one(n) for n in range(50)))
    async with asyncio.timeout(10):
        await edge.calls.wait_idle()
    assert edge.calls.active == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
