"""Execute and Attach over a real gRPC server: input goes up while events come down, and leaving is not killing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved import errors, model
from enclaved.services._upward import INPUT_AHEAD_BYTES, Upward
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


def signal(number: int, leader_only: bool = False) -> execution_pb.ExecuteRequest:
    return execution_pb.ExecuteRequest(signal=execution_pb.Signal(signal=number, leader_only=leader_only))


def resize(rows: int, columns: int) -> execution_pb.ExecuteRequest:
    return execution_pb.ExecuteRequest(resize=execution_pb.TerminalSize(rows=rows, columns=columns))


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


async def test_a_client_with_very_many_streams_still_gets_through_to_cancel_one(edge: Edge, execution: FakeExecution):
    streams = [edge.execution_stub.Execute() for _ in range(200)]
    for stream in streams:
        await stream.write(start())
    async with asyncio.timeout(30):
        await edge.execution_stub.CancelExecution(execution_pb.CancelExecutionRequest(execution_id="run"))
    assert await execution.received.get() == ("cancel", "a caller")
    for stream in streams:
        stream.cancel()
    async with asyncio.timeout(30):
        await edge.calls.wait_idle()


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
        ([start(stats_interval_s=0.01)], "start.stats_interval_s"),
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
        (signal(0), "signal.signal"),
        (signal(65), "signal.signal"),
        (resize(rows=0, columns=5), "resize.rows"),
        (resize(rows=5, columns=65536), "resize.columns"),
        (stdin(b"x", -1), "stdin.offset"),
        (stdin(b"x" * (2**20 + 1)), "stdin.data"),
        (
            execution_pb.ExecuteRequest(
                acknowledge=execution_pb.Acknowledge(offsets=[execution_pb.ChannelOffset(offset=1)])
            ),
            "acknowledge.offsets[0].channel",
        ),
    ],
    ids=["start", "attach", "empty", "no signal", "high signal", "rows", "columns", "offset", "size", "channel"],
)
async def test_a_malformed_later_message_ends_the_call_and_detaches(
    edge: Edge, execution: FakeExecution, request_: execution_pb.ExecuteRequest, field: str
):
    assert fields(await refused(edge, start(), request_)) == [field]
    assert execution.left.is_set()
    assert execution.received.empty()


async def test_signals_and_sizes_go_up(edge: Edge, execution: FakeExecution):
    call = edge.execution_stub.Execute()
    await call.write(start(terminal=execution_pb.TerminalSize()))
    await call.write(signal(2))
    await call.write(signal(15, leader_only=True))
    await call.write(resize(rows=50, columns=132))
    received = [await execution.received.get() for _ in range(3)]
    assert received == [("signal", 2, False), ("signal", 15, True), ("resize", model.TerminalSize(50, 132))]
    tell(execution, STARTED, FINISHED)
    assert await kinds(call) == ["started", "finished"]


async def test_a_signal_is_heard_behind_input_that_nobody_reads(edge: Edge, execution: FakeExecution):
    execution.may_read.clear()
    call = edge.execution_stub.Execute()
    await call.write(start(stdin=True))
    for _ in range(100):
        await call.write(stdin(b"unread"))
    await call.write(execution_pb.ExecuteRequest(end_of_input=execution_pb.EndOfInput()))
    await call.write(signal(2))
    await call.write(execution_pb.ExecuteRequest(cancel=execution_pb.Cancel()))
    received = [await execution.received.get() for _ in range(3)]
    assert received == [("stdin", b"unread", None), ("signal", 2, False), ("cancel", "its client")]
    execution.may_read.set()
    received = [(await execution.received.get())[0] for _ in range(100)]
    assert received == ["stdin"] * 99 + ["end"]
    tell(execution, STARTED, FINISHED)
    assert await kinds(call) == ["started", "finished"]


class SlowReader(FakeExecution):
    """Takes a piece of input only when the test takes one from ``taken``."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    async def write_stdin(self, data: bytes, offset: int | None = None) -> None:
        await self.taken.put(data)


async def test_input_is_taken_in_a_bounded_way_ahead_of_its_program():
    sent = read = ahead = 0

    async def requests() -> AsyncIterator[execution_pb.ExecuteRequest]:
        nonlocal sent, ahead
        while True:
            ahead = max(ahead, sent - read)
            sent += 1
            yield stdin(b"x" * 65536)

    execution = SlowReader()
    upward = Upward(execution, observe=False)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(upward.take(requests())), tasks.create_task(upward.write_input())]
        for _ in range(50):
            await execution.taken.get()
            read += 1
        for task in working:
            task.cancel()
    assert 1 <= ahead <= INPUT_AHEAD_BYTES // 65536 + 2  # one is on its way, and one in the queue of this test


async def test_samples_come_down_as_often_as_the_caller_wants(edge: Edge, execution: FakeExecution):
    usage = model.ResourceUsage(cpu_user_s=1.5, memory_bytes=7, pids=2)
    tell(execution, STARTED, model.StatsSample(0.5, usage, None), FINISHED)
    call = edge.execution_stub.Execute(iter([start(stats_interval_s=0.5)]))
    messages = [message.event async for message in call]
    assert [message.WhichOneof("event") for message in messages] == ["started", "stats", "finished"]
    sample = messages[1].stats
    assert (sample.time_s, sample.execution.cpu_user_s, sample.execution.pids) == (0.5, 1.5, 2)
    assert not sample.HasField("sandbox")
    attach = execution_pb.AttachRequest(execution_id="run", stats_interval_s=2)
    tell(execution, STARTED, FINISHED)
    assert await kinds(edge.execution_stub.Attach(attach)) == ["started", "finished"]
    tell(execution, STARTED, FINISHED)
    again = edge.execution_stub.Execute(iter([execution_pb.ExecuteRequest(attach=attach)]))
    assert await kinds(again) == ["started", "finished"]
    assert execution.sampled_every == [0.5, 2, 2]


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
