"""Executions over the connection, against a guest that says whatever a test wants."""

from __future__ import annotations

import asyncio
import os

import pytest

from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES, MAX_PAYLOAD_BYTES, STDIN_WINDOW_BYTES
from enclaved.agent.handle import RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.reader import CREDIT_BYTES
from enclaved.errors import (
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    LimitReached,
    OffsetReleased,
    SandboxLost,
)
from tests.unit.agent.house import JOB, OPTIONS, House, finished, ping, said, soon

# -- executions ---------------------------------------------------------------------------------------------------


async def test_a_job_is_sent_with_all_that_it_needs(house: House) -> None:
    guest = await house.guest()
    options = RunOptions(timeout_s=2.5, output_limit_bytes=10, stdin=True, merge_stderr=True)
    house.link.start("x", WireJob(b"{}", "default"), options)
    header, payload = await guest.hear()
    credit = header.pop("subscribe").pop("credit_bytes")
    assert header == {
        "type": "run",
        "execution": "x",
        "context": "default",
        "timeout_s": 2.5,
        "output_limit_bytes": 10,
        "stdin": True,
        "merge_stderr": True,
        "job_bytes": 2,
    }
    assert payload == b"{}"
    assert credit == CREDIT_BYTES


async def test_a_large_job_is_sent_in_pieces(house: House) -> None:
    guest = await house.guest()
    document = os.urandom(2 * MAX_PAYLOAD_BYTES + 5)
    house.link.start("x", WireJob(document, None), OPTIONS)
    frames = [await guest.hear() for _ in range(3)]
    assert [header["type"] for header, _ in frames] == ["run", "job", "job"]
    assert b"".join(payload for _, payload in frames) == document


async def test_nothing_can_be_started_while_the_guest_is_away(house: House) -> None:
    with pytest.raises(GuestUnavailable, match="reconnecting; try again"):
        house.link.start("x", JOB, OPTIONS)
    assert house.link.handles == {}


async def test_output_comes_in_order_and_ends(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    said(guest, 0, b"out")
    said(guest, 0, b"err", channel=2)
    said(guest, 3, b"more")
    finished(guest)
    guest.say("end", execution="x", reader=1)
    found = []
    while (chunk := await soon(reader.next())) is not None:
        found.append((chunk.channel, chunk.offset, chunk.data))
    assert found == [(1, 0, b"out"), (2, 0, b"err"), (1, 3, b"more")]
    assert handle.finished.result()["exit_code"] == 0


async def test_credit_is_given_back_as_output_is_taken(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    size = CREDIT_BYTES // 4
    for number in range(3):
        said(guest, number * size, bytes(size))
    for _ in range(2):
        await soon(reader.next())
    header, _ = await guest.hear_of("credit")
    assert (header["reader"], header["bytes"]) == (1, 2 * (size + CHUNK_OVERHEAD_BYTES))


async def test_a_guest_that_sends_without_credit_is_dropped(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    for number in range(CREDIT_BYTES // CHUNK_OVERHEAD_BYTES + 2):
        said(guest, number, b"x")
    await guest.hung_up()
    assert len(reader._items) <= CREDIT_BYTES // CHUNK_OVERHEAD_BYTES + 1


@pytest.mark.parametrize("offset", [0, 1, 2])
async def test_output_that_came_before_is_nonsense(house: House, offset: int) -> None:
    guest = await house.guest()
    await house.execution(guest)
    said(guest, 0, b"abc")
    said(guest, offset, b"abc")
    await guest.hung_up()


async def test_a_gap_in_the_output_is_visible_in_its_offset(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    said(guest, 0, b"abc")
    said(guest, 10, b"k")
    assert [(await soon(reader.next())).offset for _ in range(2)] == [0, 10]


async def test_a_reader_learns_where_it_starts_or_why_it_cannot(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    second, third, fourth = handle.subscribe(), handle.subscribe({1: 5}), handle.subscribe({1: 9})
    frames = [(await guest.hear())[0] for _ in range(3)]
    assert [(frame["reader"], frame["offsets"]) for frame in frames] == [(2, {}), (3, {"1": 5}), (4, {"1": 9})]
    guest.say("subscribed", execution="x", reader=2, offsets={"1": 3, "2": 4})
    guest.say("released", execution="x", reader=3, channel=1, offset=5, first_offset=7)
    guest.say("unknown", execution="x", reader=4)
    assert await soon(second.subscribed) == {1: 3, 2: 4}
    with pytest.raises(OffsetReleased, match="stdout: offset 5 is not kept; the first kept offset is 7"):
        await soon(third.subscribed)
    with pytest.raises(ExecutionNotFound):
        await soon(fourth.subscribed)


async def test_a_reader_that_stops_says_so_once(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    reader.close()
    reader.close()
    assert (await guest.hear())[0]["type"] == "unsubscribe"
    said(guest, 0, b"late")  # it was on its way
    await ping(house, guest)
    assert guest._frames == []


async def test_a_program_that_waits_for_room_ends_an_answer_that_has_all_there_is(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    guest.say("full", execution="x", offsets={"1": 3, "2": 0})
    waiting = asyncio.create_task(reader.next(until_full=True))
    await ping(house, guest)
    assert not waiting.done()
    said(guest, 0, b"abc")
    assert (await soon(waiting)).data == b"abc"
    assert await soon(reader.next(until_full=True)) is None
    assert not reader.ended
    handle.acknowledge({1: 3})
    waiting = asyncio.create_task(reader.next(until_full=True))
    header, _ = await guest.hear_of("acknowledge")
    assert header["offsets"] == {"1": 3}
    assert not waiting.done()
    said(guest, 3, b"d")
    assert (await soon(waiting)).data == b"d"


async def test_only_news_is_acknowledged(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    for offsets in ({1: 5}, {1: 5}, {1: 3, 2: 1}, {}):
        handle.acknowledge(offsets)
    assert (await guest.hear())[0]["offsets"] == {"1": 5}
    assert (await guest.hear())[0]["offsets"] == {"2": 1}
    await guest.silence()


@pytest.mark.parametrize(("code", "limit"), [("full", "executions"), ("no_process", "processes"), ("odd", "processes")])
async def test_an_execution_that_never_ran_is_a_limit_reached(house: House, code: str, limit: str) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    guest.say("refused", execution="x", code=code, message="why")
    with pytest.raises(LimitReached, match="why") as caught:
        await soon(handle.finished)
    assert caught.value.limit == limit
    with pytest.raises(LimitReached):
        await soon(reader.next())
    assert house.link.handles == {}


async def test_losing_the_sandbox_ends_everything_with_the_reason(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest, stdin=True)
    said(guest, 0, b"last words")
    await ping(house, guest)
    writing = asyncio.create_task(handle.input.write(bytes(2 * STDIN_WINDOW_BYTES), None))
    house.link.fail(SandboxLost("box", "it burned"))
    with pytest.raises(SandboxLost, match="it burned"):
        await soon(handle.finished)
    await soon(writing)
    assert (await soon(reader.next())).data == b"last words"
    for following in (reader, handle.subscribe()):
        with pytest.raises(SandboxLost):
            await soon(following.next())
    with pytest.raises(SandboxLost):
        house.link.start("y", JOB, OPTIONS)
    late = await house.visitor()
    await late.hung_up()


# -- input --------------------------------------------------------------------------------------------------------


async def test_input_stops_at_the_window_and_goes_on_as_it_is_taken(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest, stdin=True)
    data = os.urandom(STDIN_WINDOW_BYTES + 3 * MAX_PAYLOAD_BYTES)
    writing = asyncio.create_task(handle.input.write(data, None))
    received = bytearray()
    while len(received) < STDIN_WINDOW_BYTES:
        header, payload = await guest.hear_of("stdin")
        assert header["offset"] == len(received)
        received += payload
    await ping(house, guest)
    assert not writing.done()
    assert guest._frames == []
    while len(received) < len(data):
        guest.say("stdin_taken", execution="x", offset=len(received))
        header, payload = await guest.hear_of("stdin")
        assert header["offset"] == len(received)
        received += payload
    guest.say("stdin_taken", execution="x", offset=len(received))
    await soon(writing)
    await handle.end_input()
    await handle.end_input()
    await guest.hear_of("end_of_input")
    assert bytes(received) == data
    with pytest.raises(InvalidRequest, match="end of the input"):
        await handle.input.write(b"x", None)


async def test_input_after_the_end_goes_nowhere(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest, stdin=True)
    writing = asyncio.create_task(handle.input.write(bytes(2 * STDIN_WINDOW_BYTES), None))
    finished(guest)
    await soon(writing)
    await soon(handle.input.write(bytes(2 * STDIN_WINDOW_BYTES), None))


async def test_repeated_input_is_skipped_and_a_gap_refused(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest, stdin=True)
    for data, offset in ((b"abc", 0), (b"abc", 0), (b"bcde", 1), (b"f", None)):
        await handle.input.write(data, offset)
    frames = [await guest.hear() for _ in range(3)]
    assert [(header["offset"], payload) for header, payload in frames] == [(0, b"abc"), (3, b"de"), (5, b"f")]
    with pytest.raises(InvalidRequest, match="7 leaves a gap; the next byte wanted is 6"):
        await handle.input.write(b"h", 7)
