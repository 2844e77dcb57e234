"""An execution that is followed over lost streams, and what its user learns of that."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave._transports import retry, session
from ms_enclave._transports.base import ContextCalls, ExecutionCalls, ToolCall
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.http import HttpTransport
from ms_enclave._transports.retry import Patience
from ms_enclave.sandbox import contexts, executions, sync
from ms_enclave.sandbox.executions import Execution
from ms_enclave.sandbox.model import Channel, ExecutionOptions, Finished, Notice, NoticeKind, Output, Started
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, exited, guest_unavailable

STARTED = pb.ExecutionEvent(started=pb.Started(execution_id="x"))
FINISHED = pb.ExecutionEvent(finished=exited())
CALL = ToolCall("box", "python_executor", {"code": "1"})


def output(offset: int, data: bytes) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(output=pb.Output(channel=pb.CHANNEL_STDOUT, offset=offset, data=data))


def released(first_offset: int) -> Refusal:
    metadata = {"channel": "stdout", "first_offset": str(first_offset)}
    return Refusal(grpc.StatusCode.OUT_OF_RANGE, "OFFSET_RELEASED", "not kept", metadata=metadata)


@pytest.fixture
def transport(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrpcTransport:
    monkeypatch.setattr(retry, "_REACHED_WAITS_S", (0.01,) * 6)
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "5")
    return GrpcTransport(f"unix:{tmp_path}/d.sock")


async def test_output_that_was_released_while_the_connection_was_lost_is_a_gap(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    daemon.events = [[STARTED, output(0, b"a"), guest_unavailable(0.0)], [released(5)], [output(5, b"f"), FINISHED]]
    events = [event async for event in transport.stream(CALL)]
    assert [type(event) for event in events] == [Started, Output, Notice, Output, Finished]
    gap = events[2]
    assert isinstance(gap, Notice)
    assert (gap.kind, gap.channel, gap.offset, gap.length_bytes) == (NoticeKind.GAP, Channel.STDOUT, 1, 4)


async def test_an_offset_that_its_user_asked_for_and_that_is_gone_is_an_error(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    daemon.events = [[released(5)]]
    with pytest.raises(errors.OffsetReleased) as caught:
        await transport.executions.attach("x", "box", {Channel.STDOUT: 1}).next()
    assert caught.value.metadata["first_offset"] == "5"


async def test_what_could_not_be_reached_can_be_tried_again_where_it_was(
    daemon: FakeDaemon, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "0")
    daemon.events = [[STARTED, output(0, b"a"), guest_unavailable(0.0)], [STARTED, output(1, b"b"), FINISHED]]
    execution = await Execution.start(transport.executions, CALL)
    seen = [await anext(execution), await anext(execution)]
    with pytest.raises(errors.ExecutionUnreachable, match="within 0 seconds"):
        await anext(execution)
    seen += [event async for event in execution]
    assert [event.data for event in seen if isinstance(event, Output)] == [b"a", b"b"]
    assert execution.finished == seen[-1]


async def test_a_refused_start_is_raised_by_the_start(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.events = [[Refusal(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE", "it is stopped")]]
    with pytest.raises(errors.WrongState, match="it is stopped"):
        await Execution.start(transport.executions, CALL)


async def test_a_cancelled_start_kills_what_it_started(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.silent = True
    starting = asyncio.create_task(Execution.start(transport.executions, CALL))
    await asyncio.to_thread(daemon.opened.wait, 10)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert daemon.cancelled == {daemon.asked(pb.ExecuteRequest)[0].start.execution_id}


async def test_a_reader_that_only_observes_sends_and_releases_nothing(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    daemon.events = [[STARTED, output(0, b"a"), FINISHED]]
    watching = transport.executions.attach("x", "box", {}, observe=True, stats_interval=0.5)
    with pytest.raises(errors.InvalidRequest, match="observes"):
        await watching.write(b"x")
    with pytest.raises(errors.InvalidRequest, match="observes"):
        watching.acknowledge({Channel.STDOUT: 1})
    while await watching.next() is not None:
        pass
    (request,) = daemon.asked(pb.AttachRequest)
    assert (request.observe, request.stats_interval_s) == (True, 0.5)


def test_patience_is_for_executions_that_exist_and_daemons_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "60")
    gone = errors.DaemonUnavailable("gone")
    fresh = Patience("x", reached=False)
    waits = [fresh.wait_s(gone) for _ in range(3)]
    assert waits[-1] is None
    assert fresh.last_word(gone) is gone
    known = Patience("x", reached=True)
    known.known = True
    assert all(known.wait_s(gone) is not None for _ in range(100))
    assert isinstance(known.last_word(gone), errors.ExecutionUnreachable)


@pytest.mark.parametrize("told", ["soon", "-1", "nan", "inf"])
def test_a_patience_that_is_none_is_refused_by_name(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", told)
    with pytest.raises(errors.InvalidRequest, match=f"MS_ENCLAVE_RECONNECT_S: '{told}' is no number of seconds"):
        Patience("x", reached=True)


@pytest.mark.parametrize(("facet", "protocol"), [("executions", ExecutionCalls), ("contexts", ContextCalls)])
async def test_over_http_it_is_said_that_this_needs_grpc(facet: str, protocol: type) -> None:
    found = getattr(HttpTransport("http://127.0.0.1:1"), facet)
    methods = [name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"]
    assert len(methods) >= 4
    for name in methods:
        parameters = inspect.signature(getattr(found, name)).parameters.values()
        given: list[Any] = [one.name for one in parameters if one.default is one.empty]
        with pytest.raises(errors.NotServed, match=r"HTTP routes .* use gRPC"):
            await getattr(found, name)(*given)
    with pytest.raises(errors.NotServed, match="use gRPC"):
        await HttpTransport("http://127.0.0.1:1").run(ToolCall("box", "bash", {}, options=ExecutionOptions(stdin="x")))


@pytest.mark.parametrize(
    ("face", "wrapped"),
    [
        (sync.Execution, executions.Execution),
        (sync.Contexts, contexts.Contexts),
        (sync.Context, contexts.Context),
    ],
)
def test_the_blocking_face_has_every_method(face: type, wrapped: type) -> None:
    methods = {name for name in vars(wrapped) if not name.startswith("_")} - {"start"}
    assert methods - set(dir(face)) == set()


def test_an_execution_is_used_without_an_event_loop(daemon: FakeDaemon) -> None:
    daemon.ends_with_input = True
    daemon.events = [[STARTED, output(0, b"42\n"), FINISHED]] * 9
    daemon.begins_at_once = True
    with sync.SandboxFactory.create_sandbox("docker") as sandbox:
        options = ExecutionOptions(stdin=True)
        with sandbox.start_execution("python_executor", code="print(input())", options=options) as execution:
            execution.write("42\n")
            execution.end_input()
            seen = list(execution)
        assert isinstance(seen[-1], Finished)
        assert execution.finished == seen[-1]
        assert execution.wait() == seen[-1]
        assert (execution.id, execution.sandbox_id) == (execution.wrapped.id, sandbox.id)
    assert b"".join(one.stdin.data for one in daemon.sent_up) == b"42\n"


async def test_a_fault_that_nobody_expected_is_raised_where_the_events_are_awaited(
    daemon: FakeDaemon, transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.events = [[STARTED, output(0, b"a"), output(1, b"b"), FINISHED]]
    made = session.convert.event

    def fails(event: pb.ExecutionEvent) -> Any:
        if event.output.data == b"b":
            raise ValueError("an event that this SDK cannot read")
        return made(event)

    monkeypatch.setattr(session.convert, "event", fails)
    execution = await Execution.start(transport.executions, CALL)
    seen = [await anext(execution), await anext(execution)]
    with pytest.raises(ValueError, match="cannot read"):
        await anext(execution)
    assert [type(event) for event in seen] == [Started, Output]
    assert execution.finished is None


async def test_another_object_only_observes_unless_it_is_to_take_the_place(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    daemon.events = [[STARTED, FINISHED]] * 3
    execution = await Execution.start(transport.executions, CALL)
    for more in ({}, {"observe": False}):
        assert [type(event) async for event in execution.attach(**more)] == [Started, Finished]
    assert [request.observe for request in daemon.asked(pb.AttachRequest)] == [True]
    assert [request.attach.observe for request in daemon.asked(pb.ExecuteRequest) if request.HasField("attach")] == [
        False
    ]
