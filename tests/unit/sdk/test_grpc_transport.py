"""The transport over gRPC: what it repeats, what it follows, what it gives up, and in which event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave._transports import executions, retry, session
from ms_enclave._transports.base import SandboxPlan, ToolCall
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    Finished,
    Notice,
    Output,
    Started,
    ToolResult,
    Verdict,
)
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb

from tests.unit.sdk.fake_daemon import (
    FakeDaemon,
    Refusal,
    ended,
    exited,
    guest_unavailable,
    result,
    served,
    violation,
)

PLAN = SandboxPlan("box", DockerSandboxConfig(), None)
CALL = ToolCall("box", "python_executor", {"code": "1"})


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    found = FakeDaemon()
    with served(found, tmp_path / "d.sock"):
        yield found


@pytest.fixture
def transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrpcTransport:
    """One that waits hardly at all between attempts."""
    monkeypatch.setattr(retry, "_REACHED_WAITS_S", (0.01,) * 6)
    monkeypatch.setattr(retry, "_UNREACHED_WAITS_S", (0.01,) * 2)
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "0.5")
    return GrpcTransport(f"unix:{tmp_path / 'd.sock'}")


def attached(box: FakeDaemon) -> list[Any]:
    """Returns what was asked to follow executions that exist."""
    return [request.attach for request in box.asked(execution_pb.ExecuteRequest) if request.HasField("attach")]


def started(**fields: Any) -> execution_pb.ExecutionEvent:
    return execution_pb.ExecutionEvent(started=execution_pb.Started(**fields))


def output(offset: int, data: bytes, channel: Any = execution_pb.CHANNEL_STDOUT) -> execution_pb.ExecutionEvent:
    return execution_pb.ExecutionEvent(output=execution_pb.Output(channel=channel, offset=offset, data=data))


def gap(offset: int, length: int) -> execution_pb.ExecutionEvent:
    notice = execution_pb.Notice(
        kind=execution_pb.Notice.KIND_GAP,
        message="lost",
        channel=execution_pb.CHANNEL_STDOUT,
        offset=offset,
        length_bytes=length,
    )
    return execution_pb.ExecutionEvent(notice=notice)


def finished(end: execution_pb.Finished | None = None) -> execution_pb.ExecutionEvent:
    return execution_pb.ExecutionEvent(finished=end or exited())


def lost() -> Refusal:
    return guest_unavailable(0.0)


# -- sandboxes ---------------------------------------------------------------------------------------------------


async def test_a_sandbox_lives_its_life(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    made = await transport.create_sandbox(PLAN)
    assert (made.id, made.status.value, made.config["memory_limit"]) == ("box", "running", "512m")
    assert made.metadata["adjustments"][0]["granted"] == "512m"
    assert (await transport.stop_sandbox("box")).status.value == "stopped"
    assert (await transport.start_sandbox("box")).status.value == "running"
    assert (await transport.get_sandbox("box")).id == "box"
    await transport.delete_sandbox("box")
    with pytest.raises(errors.SandboxNotFound, match="'box' not found"):
        await transport.get_sandbox("box")
    with pytest.raises(errors.SandboxNotFound):
        await transport.delete_sandbox("box")


async def test_a_listing_goes_through_all_pages(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    for number in range(5):
        await transport.create_sandbox(SandboxPlan(f"box{number}", DockerSandboxConfig(), None, {"who": "me"}))
    await transport.create_sandbox(PLAN)
    assert [info.id for info in await transport.list_sandboxes({"who": "me"})] == [f"box{n}" for n in range(5)]


async def test_a_creation_whose_answer_was_lost_is_found_again(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.lost_answers["CreateSandbox"] = 1
    assert (await transport.create_sandbox(PLAN)).id == "box"
    assert len(daemon.sandboxes) == 1


async def test_a_sandbox_of_somebody_else_is_not_taken_for_ours(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.sandboxes["box"] = sandbox_pb.Sandbox(id="box")
    daemon.refusals["CreateSandbox"].append(guest_unavailable())
    with pytest.raises(errors.SandboxExists):
        await transport.create_sandbox(PLAN)


async def test_a_deletion_whose_answer_was_lost_is_done(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    await transport.create_sandbox(PLAN)
    daemon.lost_answers["DeleteSandbox"] = 1
    await transport.delete_sandbox("box")
    assert daemon.sandboxes == {}


async def test_a_caller_who_gives_up_leaves_no_sandbox(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.stuck.add("CreateSandbox")
    task = asyncio.create_task(transport.create_sandbox(PLAN))
    await asyncio.to_thread(daemon.running.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert daemon.sandboxes == {}


# -- trying again ------------------------------------------------------------------------------------------------


async def test_a_daemon_that_asks_for_patience_is_asked_again(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.refusals["GetInfo"].extend([guest_unavailable(), guest_unavailable()])
    assert (await transport.health()).version == "9.9"
    assert len(daemon.asked(system_pb.GetInfoRequest)) == 3


async def test_patience_has_an_end(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.refusals["GetInfo"].extend(guest_unavailable() for _ in range(9))
    with pytest.raises(errors.GuestUnavailable):
        await transport.health()


async def test_one_attempt_is_one_attempt(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.refusals["GetInfo"].append(guest_unavailable())
    with pytest.raises(errors.GuestUnavailable):
        await transport.health(timeout_s=5)


async def test_a_refusal_is_not_repeated(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    text = "4 GiB is more than the limit"
    metadata = {"rule": "memory", "limit": "512m"}
    refusal = Refusal(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", text, metadata=metadata)
    daemon.refusals["CreateSandbox"].append(refusal)
    with pytest.raises(PermissionError, match=text) as caught:
        await transport.create_sandbox(PLAN)
    assert isinstance(caught.value, errors.PolicyDenied)
    assert caught.value.metadata == metadata
    assert len(daemon.requests) == 1


async def test_where_no_daemon_is_the_error_says_what_to_do(transport: GrpcTransport, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"no daemon answers at unix:.*d\.sock.*enclaved run.*MS_ENCLAVE_ADDRESS"):
        await transport.health()


async def test_a_daemon_that_comes_back_is_found(tmp_path: Path, transport: GrpcTransport) -> None:
    with served(FakeDaemon(), tmp_path / "d.sock"):
        await transport.health()
    with pytest.raises(errors.DaemonUnavailable, match="stopped answering"):
        await transport.health()
    with served(FakeDaemon(), tmp_path / "d.sock"):
        # gRPC pauses between attempts to connect; ours go on for longer than that.
        for _ in range(100):
            with contextlib.suppress(errors.DaemonUnavailable):
                assert (await transport.health()).healthy
                break


async def test_somebody_is_asked_to_revive_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_UNREACHED_WAITS_S", (0.0,))
    asked = []

    async def revive() -> None:
        asked.append(1)

    with pytest.raises(errors.DaemonUnavailable):
        await GrpcTransport(f"unix:{tmp_path / 'd.sock'}", revive=revive).health()
    assert asked == [1]


async def test_an_answer_that_does_not_come_is_a_timeout(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.stuck.add("GetInfo")
    transport = GrpcTransport(f"unix:{tmp_path / 'd.sock'}", request_timeout_s=0.1)
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 seconds"):
        await transport.health()


async def test_a_call_that_the_daemon_ends_is_no_cancellation(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    """gRPC raises CancelledError for it, which would silently end the task of a caller whom nobody cancelled."""
    daemon.refusals["GetInfo"].extend(Refusal(grpc.StatusCode.CANCELLED, "?", "going away") for _ in range(20))
    with pytest.raises(errors.DaemonUnavailable, match="ended the call"):
        await transport.health()


# -- running tools -----------------------------------------------------------------------------------------------


async def run(transport: GrpcTransport, code: str = "1") -> ToolResult:
    return await transport.run(ToolCall("box", "python_executor", {"code": code}))


@pytest.fixture
def box(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon that has a sandbox."""
    daemon.sandboxes["box"] = sandbox_pb.Sandbox(id="box", state=sandbox_pb.Sandbox.STATE_RUNNING)
    return daemon


async def test_a_short_run_is_one_call(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = result(b"42\n", b"warning\n")
    found = await run(transport)
    assert (found.status, found.output, found.error) == (ExecutionStatus.SUCCESS, "42\n", "warning\n")
    (request,) = box.asked(execution_pb.RunRequest)
    assert found.metadata["execution_id"] == request.spec.execution_id


async def test_a_run_is_repeated_under_the_same_id(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.lost_answers["Run"] = 2
    box.programs["1"] = result(b"once")
    assert (await run(transport)).output == "once"
    assert len({request.spec.execution_id for request in box.asked(execution_pb.RunRequest)}) == 1


async def test_more_output_than_fits_is_fetched(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = execution_pb.RunResponse(stdout=b"abc", stderr=b"E", running=True)
    box.events = [
        [
            started(),
            output(3, b"de"),
            output(1, b"!", execution_pb.CHANNEL_STDERR),
            output(5, b"f"),
            finished(ended("EXITED", exit_code=1)),
        ]
    ]
    found = await run(transport)
    assert (found.output, found.metadata["stderr"], found.metadata["exit_code"]) == ("abcdef", "E!", 1)
    (attach,) = attached(box)
    assert {o.channel: o.offset for o in attach.offsets} == {
        execution_pb.CHANNEL_STDOUT: 3,
        execution_pb.CHANNEL_STDERR: 1,
    }


async def test_a_stream_that_breaks_is_taken_up_where_it_ended(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.events = [
        [started(), output(0, b"ab"), lost()],
        [started(), lost()],
        [started(), output(1, b"bc"), output(3, b"d"), lost()],
        [started(), output(0, b"abcd"), output(4, b"e"), finished()],
    ]
    assert (await run(transport)).output == "abcde"
    wanted = [{o.channel: o.offset for o in attach.offsets}[execution_pb.CHANNEL_STDOUT] for attach in attached(box)]
    assert wanted == [0, 2, 2, 4]


async def test_a_stream_that_brings_nothing_again_and_again_is_given_up(
    box: FakeDaemon, transport: GrpcTransport
) -> None:
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.events = [[started(), lost()] for _ in range(1000)]
    with pytest.raises(errors.ExecutionUnreachable, match=r"get_execution.*MS_ENCLAVE_RECONNECT_S") as caught:
        await run(transport)
    assert caught.value.metadata["execution_id"] == box.asked(execution_pb.RunRequest)[0].spec.execution_id


async def test_missing_output_is_told(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.events = [[started(), output(0, b"a"), gap(1, 5), output(6, b"b"), finished()]]
    found = await run(transport)
    assert (found.output, found.metadata["truncated"], found.metadata["notices"]) == ("ab", True, ["lost"])


async def test_a_stream_without_an_end_is_a_fault_of_ours(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.events = [[started()], []]
    with pytest.raises(errors.InternalError, match="ended before the execution did"):
        await run(transport)


async def test_an_execution_that_outlasts_the_call_is_followed(
    box: FakeDaemon, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call waits for its context behind others, so the deadline of an RPC says nothing about the execution."""
    monkeypatch.setattr(executions, "ANSWER_S", 0.05)
    box.programs["1"] = box.until_cancelled
    box.events = [[started(), output(0, b"late"), finished()]]
    found = await transport.run(ToolCall("box", "python_executor", {"code": "1"}, timeout_s=0.05))
    assert found.output == "late"


async def test_a_daemon_that_says_nothing_at_all_is_given_up(
    box: FakeDaemon, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_S", 0.1)
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.silent = True
    with pytest.raises(TimeoutError, match="did not answer"):
        await run(transport)


async def test_a_stream_that_reaches_its_time_limit_is_taken_up_again(
    box: FakeDaemon, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STREAM_S", 0.2)
    box.programs["1"] = execution_pb.RunResponse(running=True)
    box.endless = True
    box.events = [[started()], [started()], [started(), output(0, b"a"), finished()]]
    assert (await run(transport)).output == "a"


async def test_refused_nonsense_is_a_failed_result(box: FakeDaemon, transport: GrpcTransport) -> None:
    detail = violation("parameters.code", "No code provided", "TOOL_REFUSED")
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "parameters.code: ...", details=(detail,))
    box.refusals["Run"].append(refusal)
    found = await run(transport, " ")
    assert (found.status, found.error) == (ExecutionStatus.ERROR, "No code provided")


async def test_a_wrong_parameter_is_an_error(box: FakeDaemon, transport: GrpcTransport) -> None:
    detail = violation("parameters.nope", "is unknown")
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "parameters.nope: no", details=(detail,))
    box.refusals["Run"].append(refusal)
    with pytest.raises(ValueError, match=r"parameters\.nope") as caught:
        await run(transport)
    assert isinstance(caught.value, errors.InvalidRequest)
    assert caught.value.violations[0].field == "parameters.nope"


async def test_cancelling_the_caller_cancels_the_execution(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = box.until_cancelled
    task = asyncio.create_task(run(transport))
    await asyncio.to_thread(box.running.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (request,) = box.asked(execution_pb.RunRequest)
    assert box.cancelled == {request.spec.execution_id}


async def test_a_timeout_of_the_caller_cancels_the_execution(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.programs["1"] = box.until_cancelled
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await run(transport)
    assert box.cancelled


# -- streams -----------------------------------------------------------------------------------------------------


async def test_a_stream_shows_what_happens(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.events = [[started(execution_id="x", timeout_s=30), output(0, b"a"), gap(1, 2), finished()]]
    kinds = [type(event) async for event in transport.stream(CALL)]
    assert kinds == [Started, Output, Notice, Finished]
    assert not box.cancelled


async def test_a_stream_goes_on_after_a_break_without_repeating_itself(
    box: FakeDaemon, transport: GrpcTransport
) -> None:
    box.events = [[started(), output(0, b"a"), lost()], [started(), output(0, b"ab"), finished()]]
    seen = [event async for event in transport.stream(CALL)]
    assert [event.data for event in seen if isinstance(event, Output)] == [b"a", b"b"]
    assert [type(event) for event in seen].count(Started) == 1
    first, again = box.asked(execution_pb.ExecuteRequest)
    assert again.attach.execution_id == first.start.execution_id


async def test_a_stream_that_never_began_is_begun_again(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.events = [[lost()], [started(), finished()]]
    seen = [event async for event in transport.stream(CALL)]
    assert isinstance(seen[-1], Finished)
    assert seen[-1].verdict is Verdict.EXITED
    assert len({request.start.execution_id for request in box.asked(execution_pb.ExecuteRequest)}) == 1


async def test_leaving_a_stream_cancels_the_execution(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.events = [[started(), output(0, b"a")]]
    box.endless = True
    async with contextlib.aclosing(transport.stream(CALL)) as events:
        async for event in events:
            if isinstance(event, Output):
                break
    assert len(box.cancelled) == 1


# -- files -------------------------------------------------------------------------------------------------------


async def test_a_file_is_written_and_read(box: FakeDaemon, transport: GrpcTransport) -> None:
    data = bytes(range(256)) * 20

    async def content() -> Any:
        yield data[:100]
        yield data[100:]

    assert await transport.write_file("box", "a/b", content, mode=0o755) == len(data)
    assert box.files["box", "a/b"] == (data, 0o755)
    assert b"".join([piece async for piece in transport.read_file("box", "a/b")]) == data
    with pytest.raises(FileNotFoundError, match="no such file: c"):
        await anext(transport.read_file("box", "c"))


async def test_a_write_is_repeated_from_its_beginning(box: FakeDaemon, transport: GrpcTransport) -> None:
    box.refusals["OpenFile"].append(guest_unavailable())
    asked = []

    async def content() -> Any:
        asked.append(1)
        yield b"data"

    assert await transport.write_file("box", "f", content) == 4
    assert box.files["box", "f"][0] == b"data"
    assert len(box.asked(file_pb.OpenFile)) == 2


async def test_a_refused_write_says_why(box: FakeDaemon, transport: GrpcTransport) -> None:
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_SPACE", "the disk is full")
    box.refusals["OpenFile"].append(refusal)

    async def content() -> Any:
        while True:
            yield b"x" * 65536

    with pytest.raises(errors.NoSpace, match="the disk is full"):
        await transport.write_file("box", "f", content)


async def test_an_error_of_the_source_ends_a_write(box: FakeDaemon, transport: GrpcTransport) -> None:
    async def content() -> Any:
        yield b"x"
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        await transport.write_file("box", "f", content)
    assert box.files == {}


# -- event loops -------------------------------------------------------------------------------------------------


def test_a_transport_works_in_one_loop_after_another(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    for _ in range(5):
        assert asyncio.run(transport.health()).healthy
    assert len(transport._calls._channels._entries) == 1


def test_a_transport_works_in_many_loops_at_once(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    barrier = threading.Barrier(4)
    versions = []

    async def ask() -> None:
        barrier.wait(10)
        versions.extend([(await transport.health()).version for _ in range(20)])

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert versions == ["9.9"] * 80


def test_loops_that_are_closed_leave_nothing_behind(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    asyncio.run(transport.health())
    first = next(iter(transport._calls._channels._entries.values())).loop
    asyncio.run(transport.health())
    gc.collect()
    assert [entry.loop for entry in transport._calls._channels._entries.values()] != [first]


async def test_names_that_cannot_be_sent_are_refused_with_the_name_of_the_field(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    with pytest.raises(errors.InvalidRequest, match="sandbox_id: contains text that is not valid Unicode"):
        await transport.get_sandbox("\ud800")
    with pytest.raises(errors.InvalidRequest, match="tool_name: contains"):
        await transport.run(ToolCall("box", "\ud800", {}))
    with pytest.raises(errors.InvalidRequest, match="path: contains"):
        await anext(transport.read_file("box", "\ud800"))
    assert daemon.requests == []
