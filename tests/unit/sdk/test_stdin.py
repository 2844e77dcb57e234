"""Standard input that goes up while a program runs: none of it is lost with a connection, none is sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from ms_enclave._model import Finished, Started
from ms_enclave._transports import stdin
from ms_enclave._transports.base import ToolCall
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.stdin import Input
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, exited

OPENING = pb.ExecuteRequest(start=pb.ExecutionSpec(sandbox_id="box"))


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def sent(feed: Input) -> list[pb.ExecuteRequest]:
    """Returns what one stream sends to the end of the input."""
    pumping = asyncio.create_task(feed.pump())
    found = [request async for request in feed.requests(OPENING)]
    await pumping
    return found


async def test_input_follows_the_opening_in_pieces_with_their_offsets_and_an_end() -> None:
    data = b"x" * (stdin.CHUNK_BYTES + 5)
    first, *middle, last = await sent(Input(pieces(b"ab", data)))
    assert first == OPENING
    assert [(one.stdin.offset, len(one.stdin.data)) for one in middle] == [(0, 2), (2, 65536), (65538, 5)]
    assert last.HasField("end_of_input")


async def test_a_new_stream_repeats_what_the_one_before_may_have_lost() -> None:
    feed = Input(pieces(b"one", b"two"))
    before = await sent(feed)
    again = [request async for request in feed.requests(OPENING)]
    assert again == before


async def test_a_stream_that_is_cut_goes_on_where_it_was() -> None:
    feed = Input(pieces(b"one", b"two", b"three"))
    pumping = asyncio.create_task(feed.pump())
    requests = feed.requests(OPENING)
    assert (await anext(requests)) == OPENING
    assert (await anext(requests)).stdin.data == b"one"
    again = [request async for request in feed.requests(OPENING)]
    assert [one.stdin.data for one in again[1:-1]] == [b"one", b"two", b"three"]
    await pumping


async def test_no_more_is_kept_than_may_be_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdin, "KEPT_BYTES", 10)
    feed = Input(pieces(b"aaaaaa", b"bbbbbb", b"cc"))
    await sent(feed)
    again = [request async for request in feed.requests(OPENING)]
    assert [(one.stdin.offset, one.stdin.data) for one in again[1:-1]] == [(6, b"bbbbbb"), (12, b"cc")]


async def test_an_execution_with_input_is_taken_up_again_with_its_input(daemon: FakeDaemon, tmp_path: Path) -> None:
    started = pb.ExecutionEvent(started=pb.Started(execution_id="e"))
    lost = Refusal(grpc.StatusCode.UNAVAILABLE, "", "the connection was lost")
    rest = [started, pb.ExecutionEvent(finished=exited())]
    daemon.events = [[started, lost], rest, rest, rest]  # gRPC may lose the end of a stream that is written to
    transport = GrpcTransport(f"unix:{tmp_path}/d.sock")
    call = ToolCall("box", "python_executor", {"code": "1"}, stdin=pieces(b"line"))
    events = [event async for event in transport.stream(call)]
    assert [type(event) for event in events] == [Started, Finished]
    first, *others = daemon.asked(pb.ExecuteRequest)
    assert first.start.stdin is True
    assert {other.attach.execution_id for other in others} == {first.start.execution_id}


async def test_a_source_that_fails_ends_the_input_and_is_remembered() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"line"
        raise OSError("the disk is gone")

    feed = Input(failing())
    *_, last = await sent(feed)
    assert last.HasField("end_of_input")
    assert str(feed.failure) == "the disk is gone"
