"""What goes up while a program runs: none of it is lost with a connection, none is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from ms_enclave._model import Channel, Finished, Started, TerminalSize
from ms_enclave._transports import upward
from ms_enclave._transports.base import ToolCall
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.upward import Upward
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, exited


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def ours() -> Upward:
    return Upward(knows_offset=True, acknowledges=True)


async def sent(going: Upward, count: int) -> list[pb.ExecuteRequest]:
    """Returns the first messages of one stream."""
    async with contextlib.aclosing(going.requests()) as requests:
        return [await anext(requests) for _ in range(count)]


async def test_input_goes_in_pieces_with_their_offsets_and_an_end() -> None:
    going = ours()
    await going.write(b"ab")
    await going.write(b"x" * (upward.CHUNK_BYTES + 5))
    going.end_input()
    *middle, last = await sent(going, 4)
    assert [(one.stdin.offset, len(one.stdin.data)) for one in middle] == [(0, 2), (2, 65536), (65538, 5)]
    assert last.HasField("end_of_input")


async def test_a_new_stream_repeats_what_the_one_before_may_have_lost() -> None:
    going = ours()
    for piece in (b"one", b"two", b"three"):
        await going.write(piece)
    going.end_input()
    assert [one.stdin.data for one in await sent(going, 1)] == [b"one"]
    again = await sent(going, 4)
    assert [(one.stdin.offset, one.stdin.data) for one in again[:-1]] == [(0, b"one"), (3, b"two"), (6, b"three")]
    assert await sent(going, 4) == again
    assert await sent(going.moved(), 4) == again


async def test_no_more_is_kept_than_may_be_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upward, "KEPT_BYTES", 10)
    going = ours()
    for piece in (b"aaaaaa", b"bbbbbb", b"cc"):
        await going.write(piece)
    await sent(going, 3)
    again = await sent(going, 2)
    assert [(one.stdin.offset, one.stdin.data) for one in again] == [(6, b"bbbbbb"), (12, b"cc")]


async def test_who_writes_more_than_a_program_takes_waits() -> None:
    going = ours()
    writing = asyncio.create_task(going.write(b"x" * upward.CHUNK_BYTES * (upward.WAITING_CHUNKS + 1)))
    async with contextlib.aclosing(going.requests()) as requests:
        await anext(requests)
        async with asyncio.timeout(10):
            await writing
    assert going._unsent == upward.WAITING_CHUNKS


async def test_input_for_an_execution_of_somebody_else_has_no_offsets_and_is_not_repeated() -> None:
    going = Upward(knows_offset=False, acknowledges=True)
    await going.write(b"one")
    await going.write(b"two")
    (first,) = await sent(going, 1)
    assert (first.stdin.data, first.stdin.HasField("offset")) == (b"one", False)
    (second,) = await sent(going, 1)
    assert second.stdin.data == b"two"


async def test_of_the_sizes_of_a_terminal_the_last_one_counts_and_is_repeated() -> None:
    going = ours()
    going.resize(TerminalSize(10, 20))
    going.resize(TerminalSize(30, 40))
    for _ in range(2):
        (one,) = await sent(going, 1)
        assert (one.resize.rows, one.resize.columns) == (30, 40)
    with pytest.raises(InvalidRequest, match=r"terminal\.rows"):
        going.resize(TerminalSize(-1, 1))


async def test_consumed_output_is_acknowledged_in_large_pieces_or_after_a_moment() -> None:
    going = ours()
    going.consumed(Channel.STDOUT, upward.ACKNOWLEDGE_BYTES, upward.ACKNOWLEDGE_BYTES)
    going.consumed(Channel.STDERR, 3, 3)
    (one,) = await sent(going, 1)
    assert {o.channel: o.offset for o in one.acknowledge.offsets} == {
        pb.CHANNEL_STDOUT: upward.ACKNOWLEDGE_BYTES,
        pb.CHANNEL_STDERR: 3,
    }
    going.consumed(Channel.STDERR, 4, 1)
    (later,) = await sent(going, 1)
    assert [o.offset for o in later.acknowledge.offsets] == [upward.ACKNOWLEDGE_BYTES, 4]


async def test_a_reader_that_consumes_nothing_says_so_before_much_is_on_its_way() -> None:
    """Otherwise the daemon would take what is lost with the connection for received."""
    going = ours()
    async with contextlib.aclosing(going.requests()) as requests:
        first = asyncio.ensure_future(anext(requests))
        await asyncio.sleep(0)
        going.received(upward.ACKNOWLEDGE_BYTES)
        async with asyncio.timeout(10):
            assert list((await first).acknowledge.offsets) == []


async def test_who_acknowledges_by_hand_is_not_helped() -> None:
    going = ours()
    going.acknowledge({Channel.STDOUT: 5})
    going.consumed(Channel.STDOUT, 100, 100)
    (one,) = await sent(going, 1)
    assert [o.offset for o in one.acknowledge.offsets] == [5]


@pytest.fixture
def transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrpcTransport:
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "5")
    return GrpcTransport(f"unix:{tmp_path}/d.sock")


async def test_an_execution_with_input_is_taken_up_again_with_its_input(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    started = pb.ExecutionEvent(started=pb.Started(execution_id="e"))
    lost = Refusal(grpc.StatusCode.UNAVAILABLE, "", "the connection was lost")
    rest = [started, pb.ExecutionEvent(finished=exited())]
    daemon.events = [[started, lost], *[rest] * 9]  # gRPC may lose the end of a stream that is written to
    call = ToolCall("box", "python_executor", {"code": "1"}, stdin=pieces(b"line"))
    events = [event async for event in transport.stream(call)]
    assert [type(event) for event in events] == [Started, Finished]
    first, *others = daemon.asked(pb.ExecuteRequest)
    assert first.start.stdin is True
    assert {other.attach.execution_id for other in others} == {first.start.execution_id}


async def test_a_source_that_fails_ends_the_input_and_its_error_comes_after_the_program_s_end(
    daemon: FakeDaemon, transport: GrpcTransport
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"line"
        raise OSError("the disk is gone")

    started = pb.ExecutionEvent(started=pb.Started(execution_id="e"))
    daemon.ends_with_input = True
    daemon.events = [[started, pb.ExecutionEvent(finished=exited())]] * 9
    call = ToolCall("box", "python_executor", {"code": "1"}, stdin=failing())
    events = transport.stream(call)
    assert isinstance(await anext(events), Started)
    assert isinstance(await anext(events), Finished)
    with pytest.raises(OSError, match="the disk is gone"):
        await anext(events)
    assert b"".join(one.stdin.data for one in daemon.sent_up) == b"line"
