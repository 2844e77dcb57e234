"""Executions of a whole daemon over gRPC: detached, signalled, sampled, on a terminal, waited for and listed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory
from tests.service.edge import reason

GIB = 2**30
TERM = pb.Signal(signal=15)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        await running.create()
        yield running


def bash(command: str, execution_id: str = "run", **changes: Any) -> pb.ExecutionSpec:
    parameters = json.dumps({"command": command})
    values = {"sandbox_id": "box", "tool": "bash", "parameters_json": parameters, **changes}
    return pb.ExecutionSpec(execution_id=execution_id, **values)


async def run(running: Running, spec: pb.ExecutionSpec) -> pb.RunResponse:
    response: pb.RunResponse = await running.execution_stub.Run(pb.RunRequest(spec=spec))
    return response


async def wait(running: Running, execution_id: str = "run", wait_s: float = PATIENCE_S) -> pb.Execution:
    response = await running.execution_stub.WaitExecution(
        pb.WaitExecutionRequest(execution_id=execution_id, wait_s=wait_s)
    )
    found: pb.Execution = response.execution
    return found


async def get(running: Running, execution_id: str = "run") -> pb.Execution:
    response = await running.execution_stub.GetExecution(pb.GetExecutionRequest(execution_id=execution_id))
    found: pb.Execution = response.execution
    return found


def verdict(execution: pb.Execution) -> str:
    return pb.Verdict.Name(execution.finished.verdict)


class Stream:
    """An Execute call, one event after the other."""

    def __init__(self, running: Running) -> None:
        self.call = running.execution_stub.Execute()

    @classmethod
    async def started(cls, running: Running, spec: pb.ExecutionSpec) -> "Stream":
        """Starts and takes the first event."""
        stream = cls(running)
        await stream.send(start=spec)
        assert (await stream.next("started")).execution_id == spec.execution_id
        return stream

    async def send(self, **message: Any) -> None:
        await self.call.write(pb.ExecuteRequest(**message))

    async def next(self, kind: str) -> Any:
        """The next event of a kind; passes over stats in search of another."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = (await self.call.read()).event
                found = event.WhichOneof("event")
                if found == kind:
                    return getattr(event, kind)
                assert found == "stats", event

    async def until(self, text: bytes) -> bytes:
        """All output up to a text."""
        data = b""
        while text not in data:
            data += (await self.next("output")).data
        return data

    async def rest(self) -> tuple[bytes, pb.Finished]:
        """The rest of the output, and the end."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            while not (event := (await self.call.read()).event).HasField("finished"):
                data += event.output.data
        return data, event.finished


async def follow(running: Running, **request: Any) -> list[pb.ExecutionEvent]:
    call = running.execution_stub.Attach(pb.AttachRequest(execution_id="run", **request))
    return [message.event async for message in call]


# -- leaving and coming back -------------------------------------------------------------------------------------


async def test_a_detached_run_returns_at_once_and_goes_on(running: Running):
    response = await run(running, bash("echo one; sleep 0.2; echo two >&2", detach=True))
    assert (response.execution_id, response.running, response.HasField("finished")) == ("run", True, False)
    ended = await wait(running)
    assert (verdict(ended), ended.state, ended.detach) == ("VERDICT_EXITED", pb.EXECUTION_STATE_ENDED, True)
    kinds = [(event.output.channel, event.output.data) for event in await follow(running) if event.HasField("output")]
    assert kinds == [(pb.CHANNEL_STDOUT, b"one\n"), (pb.CHANNEL_STDERR, b"two\n")]


async def test_the_same_id_is_never_a_second_run(running: Running):
    spec = bash("echo x >> runs; cat runs")
    first, second = await run(running, spec), await run(running, spec)
    assert (first.stdout, second.stdout) == (b"x\n", b"x\n")


async def test_a_wait_that_is_over_says_that_it_still_runs(running: Running):
    await run(running, bash("sleep 60", detach=True))
    found = await wait(running, wait_s=0.01)
    assert (found.state, found.HasField("finished"), found.readers) == (pb.EXECUTION_STATE_RUNNING, False, 0)
    await running.execution_stub.CancelExecution(pb.CancelExecutionRequest(execution_id="run"))
    ended = await wait(running)
    assert (verdict(ended), ended.finished.cancelled_by) == ("VERDICT_CANCELLED", "a caller")


async def test_what_is_kept_last_comes_after_a_gap(running: Running):
    spec = bash("seq 20000", retention=pb.RETENTION_KEEP_LAST, keep_last_bytes=4096, detach=True)
    await run(running, spec)
    await wait(running)
    everything = b"".join(b"%d\n" % n for n in range(1, 20001))
    events = await follow(running)
    offset = events[0].started.offsets[0].offset
    gap = sum(event.notice.length_bytes for event in events if event.notice.kind == pb.Notice.KIND_GAP)
    data = b"".join(event.output.data for event in events)
    assert data
    assert data == everything[-len(data) :]
    assert len(data) <= 4096
    assert offset + gap + len(data) == len(everything)


async def test_a_follower_comes_back_at_an_offset(running: Running):
    await run(running, bash("echo one; echo two", detach=True))
    await wait(running)
    at = pb.ChannelOffset(channel=pb.CHANNEL_STDOUT, offset=4)
    events = await follow(running, offsets=[at], observe=True)
    assert [event.output.data for event in events if event.HasField("output")] == [b"two\n"]
    with pytest.raises(aio.AioRpcError) as caught:
        await follow(running, offsets=[pb.ChannelOffset(channel=pb.CHANNEL_STDOUT, offset=9)])
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_RELEASED")


# -- stepping in -------------------------------------------------------------------------------------------------


async def test_a_signal_by_name_reaches_the_whole_tree(running: Running):
    stream = await Stream.started(running, bash("sleep 60 & echo ready; wait; sleep 60"))
    await stream.until(b"ready")
    await running.execution_stub.SignalExecution(pb.SignalExecutionRequest(execution_id="run", signal=TERM))
    _, finished = await stream.rest()
    assert (finished.verdict, finished.signal) == (pb.VERDICT_SIGNALED, 15)
    assert finished.signal_sender == pb.SIGNAL_SENDER_CALLER


async def test_a_signal_on_the_stream_reaches_the_leader_alone(running: Running):
    command = (
        "trap 'echo leader; exit 5' USR1; (trap 'echo child' USR1; while :; do sleep 0.1; done) 2>&- & echo ready; wait"
    )
    stream = await Stream.started(running, bash(command))
    await stream.until(b"ready")
    await stream.send(signal=pb.Signal(signal=10, leader_only=True))
    data, finished = await stream.rest()
    assert data == b"leader\n"
    assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 5)


async def test_a_client_cancels_behind_input_that_nobody_reads(running: Running):
    stream = await Stream.started(running, bash("sleep 60", stdin=True))
    for _ in range(8):
        await stream.send(stdin=pb.Stdin(data=b"x" * 30_000))
    await stream.send(cancel=pb.Cancel())
    _, finished = await stream.rest()
    assert (finished.verdict, finished.cancelled_by) == (pb.VERDICT_CANCELLED, "its client")


async def test_nonsense_ends_the_call_and_not_the_execution(running: Running):
    stream = await Stream.started(running, bash("read line; echo got $line", stdin=True))
    await stream.send(signal=pb.Signal(signal=99))
    with pytest.raises(aio.AioRpcError) as caught:
        await stream.rest()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await get(running)).state == pb.EXECUTION_STATE_RUNNING
    again = Stream(running)
    await again.send(attach=pb.AttachRequest(execution_id="run"))
    await again.next("started")
    await again.send(stdin=pb.Stdin(data=b"it\n", offset=0))
    data, finished = await again.rest()
    assert (data, finished.verdict) == (b"got it\n", pb.VERDICT_EXITED)


async def test_a_repeated_chunk_is_delivered_once_and_a_gap_is_refused(running: Running):
    stream = await Stream.started(running, bash("cat", stdin=True))
    await stream.send(stdin=pb.Stdin(data=b"one\n", offset=0))
    await stream.send(stdin=pb.Stdin(data=b"one\ntwo\n", offset=0))
    assert await stream.until(b"two\n") == b"one\ntwo\n"
    await stream.send(stdin=pb.Stdin(data=b"four\n", offset=13))
    with pytest.raises(aio.AioRpcError) as caught:
        await stream.rest()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_terminal_has_a_size_and_takes_another(running: Running):
    command = "stty size; read line; stty size; test -t 0 && test -t 1 && test -t 2 && echo terminal"
    stream = await Stream.started(running, bash(command, terminal=pb.TerminalSize(rows=30)))
    first = await stream.next("output")
    assert (first.channel, first.data) == (pb.CHANNEL_TERMINAL, b"30 80\r\n")
    await stream.send(resize=pb.TerminalSize(rows=50, columns=132))
    await stream.send(stdin=pb.Stdin(data=b"go\n"))
    data, finished = await stream.rest()
    assert data.split() == [b"go", b"50", b"132", b"terminal"]
    assert [total.channel for total in finished.bytes_total] == [pb.CHANNEL_TERMINAL]
    assert (await get(running)).terminal


async def test_the_end_of_input_ends_a_terminals_program(running: Running):
    stream = await Stream.started(running, bash("cat", terminal=pb.TerminalSize()))
    await stream.send(end_of_input=pb.EndOfInput())
    _, finished = await stream.rest()
    assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 0)


# -- looking on --------------------------------------------------------------------------------------------------


async def test_samples_tell_what_an_execution_uses_while_it_runs(running: Running):
    stream = await Stream.started(running, bash("while :; do :; done", stats_interval_s=0.05))
    sample = await stream.next("stats")
    while not sample.execution.cpu_user_s:
        following = await stream.next("stats")
        assert following.time_s > sample.time_s
        sample = following
    assert sample.execution.pids >= 1
    assert 0 < sample.execution.memory_bytes < GIB
    assert not sample.HasField("sandbox")  # this runtime has no control groups
    await stream.send(cancel=pb.Cancel())
    _, finished = await stream.rest()
    assert finished.usage.cpu_user_s > 0
    assert finished.usage.memory_peak_bytes > 0
    assert finished.phases.running_s > 0


async def test_a_program_that_waits_for_input_is_told_of_and_shown(running: Running):
    stream = await Stream.started(running, bash("read line; echo $line", stdin=True))
    notice = await stream.next("notice")
    assert notice.kind == pb.Notice.KIND_AWAITING_INPUT
    assert notice.message
    shown = await get(running)
    assert (shown.awaiting_input, shown.readers) == (True, 1)
    await stream.send(stdin=pb.Stdin(data=b"here\n"))
    assert (await stream.rest())[0] == b"here\n"
    assert not (await get(running)).awaiting_input


async def test_a_program_that_waits_for_input_is_killed_if_wanted(running: Running):
    spec = bash("read line", stdin=True, on_awaiting_input=pb.ON_AWAITING_INPUT_KILL)
    stream = await Stream.started(running, spec)
    await stream.next("notice")
    _, finished = await stream.rest()
    assert finished.verdict == pb.VERDICT_CANCELLED
    assert "on_awaiting_input" in finished.cancelled_by


async def test_an_execution_that_does_nothing_is_killed_after_its_idle_timeout(running: Running):
    response = await run(running, bash("echo before; sleep 60", idle_timeout_s=0.2))
    assert (response.stdout, response.finished.verdict) == (b"before\n", pb.VERDICT_IDLE_TIMEOUT)


async def test_executions_are_listed_in_pages_by_sandbox_and_state(running: Running):
    await running.create("other")
    for name in ("a", "b"):
        await run(running, bash("true", name))
    await run(running, bash("sleep 60", "c", detach=True))
    await run(running, bash("true", "d", sandbox_id="other"))

    async def names(**request: Any) -> tuple[list[str], str]:
        page = await running.execution_stub.ListExecutions(pb.ListExecutionsRequest(**request))
        return [each.execution_id for each in page.executions], page.next_page_token

    assert await names() == (["a", "b", "c", "d"], "")
    assert await names(sandbox_id="box", state=pb.EXECUTION_STATE_ENDED) == (["a", "b"], "")
    assert await names(state=pb.EXECUTION_STATE_RUNNING) == (["c"], "")
    first, token = await names(page_size=3)
    assert (first, await names(page_size=3, page_token=token)) == (["a", "b", "c"], (["d"], ""))
    for request in ({"page_size": -1}, {"page_size": 1001}, {"page_token": "no"}):
        with pytest.raises(aio.AioRpcError) as caught:
            await names(**request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(aio.AioRpcError) as caught:
        await names(sandbox_id="none")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_execution_is_shown_as_it_was_granted(running: Running):
    spec = bash("exit 3", timeout_s=12.5)
    await run(running, spec)
    shown = await get(running)
    assert (shown.execution_id, shown.sandbox_id, shown.tool) == ("run", "box", "shell_executor")
    assert (shown.timeout_s, shown.context, shown.detach, shown.terminal) == (12.5, "", False, False)
    assert (verdict(shown), shown.finished.exit_code, shown.readers) == ("VERDICT_EXITED", 3, 0)
    assert shown.HasField("create_time")


async def test_what_callers_do_is_counted(running: Running):
    stream = await Stream.started(running, bash("read line", stdin=True))
    await stream.next("notice")
    _, text = await running.get("/metrics")
    assert "enclaved_execution_readers 1.0" in text.splitlines()
    await stream.send(signal=TERM)
    await stream.rest()
    await run(running, bash("echo 12345", "second"))
    _, text = await running.get("/metrics")
    for line in (
        "enclaved_execution_readers 0.0",
        "enclaved_execution_signals_total 1.0",
        'enclaved_execution_notices_total{kind="awaiting_input"} 1.0',
        'enclaved_execution_output_bytes_total{channel="stdout"} 6.0',
        "enclaved_execution_memory_peak_bytes_count 2.0",
        'enclaved_executions_total{tool="shell_executor",verdict="SIGNALED"} 1.0',
    ):
        assert line in text.splitlines()


async def test_a_listing_over_many_executions_holds_no_secrets(running: Running, tmp_path: Path):
    """What is shown of an execution never has its parameters: others may list it."""
    await run(running, bash("echo s3cret", "quiet"))
    page = await running.execution_stub.ListExecutions(pb.ListExecutionsRequest())
    assert "s3cret" not in str(page)
