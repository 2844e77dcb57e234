"""The daemon's side of the connection, against a guest that says whatever a test wants."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES, MAX_PAYLOAD_BYTES, PROTOCOL_VERSION, STDIN_WINDOW_BYTES
from enclaved.agent.handle import Handle, RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.link import SOCKET_NAME, GuestLink
from enclaved.agent.reader import CREDIT_BYTES, OutputReader
from enclaved.errors import (
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    LimitReached,
    NoSpace,
    OffsetReleased,
    SandboxLost,
)
from tests.unit.agent.scripted import HELLO, PATIENCE_S, FakeGuest

OPTIONS = RunOptions(timeout_s=5)
JOB = WireJob(b'{"kind":"command"}', None)


class House:
    """A link and the guests that come to it."""

    def __init__(self, directory: Path) -> None:
        self.link = GuestLink("box", directory, group_id=os.getgid(), guest_uids={os.getuid()})
        self.guests: list[FakeGuest] = []

    async def visitor(self) -> FakeGuest:
        """Somebody who has connected and said nothing."""
        guest = FakeGuest(*await asyncio.open_unix_connection(self.link.directory / SOCKET_NAME))
        self.guests.append(guest)
        return guest

    async def guest(self, *holds: str) -> FakeGuest:
        """A guest that was let in."""
        guest = await self.visitor()
        guest.greet(*holds)
        async with asyncio.timeout(PATIENCE_S):
            await self.link.wait_connected()
        return guest

    async def away(self, guest: FakeGuest) -> None:
        """Lets a guest leave, and waits until the link has noticed."""
        await guest.leave()
        async with asyncio.timeout(PATIENCE_S):
            await self.link.wait_away()

    async def execution(self, guest: FakeGuest, *, stdin: bool = False) -> tuple[Handle, OutputReader]:
        """An execution that the guest has taken."""
        handle, reader = self.link.start("x", JOB, RunOptions(timeout_s=5, stdin=stdin))
        await guest.hear_of("run")
        if stdin:
            await guest.hear_of("watch_input")
        return handle, reader


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[House]:
    house = House(directory)
    await house.link.listen()
    try:
        yield house
    finally:
        await house.link.close()
        for guest in house.guests:
            await guest.leave()


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a link's directory can be: paths of sockets are short, and those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="link") as folder:
        yield Path(folder) / "s"


@pytest.fixture
async def house(place: Path) -> AsyncIterator[House]:
    """See `House`."""
    async with opened(place) as made:
        yield made


def said(guest: FakeGuest, offset: int, payload: bytes, *, reader: int = 1, channel: int = 1) -> None:
    guest.say("output", payload, execution="x", reader=reader, channel=channel, offset=offset, time_s=0.5)


def finished(guest: FakeGuest, **report: Any) -> None:
    guest.say("finished", execution="x", exit_code=0, **report)


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


# -- listening, and who may come in


async def test_the_socket_is_for_its_group_only_and_gone_in_the_end(place: Path) -> None:
    async with opened(place) as house:
        directory, socket = place.stat(), (place / SOCKET_NAME).stat()
        assert stat.S_IMODE(directory.st_mode) == 0o710
        assert stat.S_IMODE(socket.st_mode) == 0o660
        assert (directory.st_gid, socket.st_gid) == (os.getgid(), os.getgid())
        assert not house.link.connected
    assert not place.exists()


async def test_a_path_too_long_for_a_socket_is_told_with_what_to_do(tmp_path: Path) -> None:
    link = GuestLink("box", tmp_path / ("d" * 100), group_id=os.getgid(), guest_uids=set())
    with pytest.raises(NoSpace, match="choose a shorter state directory"):
        await link.listen()


async def test_a_directory_that_cannot_be_made_is_told(place: Path) -> None:
    place.touch()
    link = GuestLink("box", place / "s", group_id=os.getgid(), guest_uids=set())
    with pytest.raises(NoSpace, match="Not a directory"):
        await link.listen()


async def test_a_guest_that_greets_well_is_let_in(house: House) -> None:
    guest = await house.guest()
    assert house.link.connected
    assert house.link.python_version == "3.11.2"
    await house.away(guest)
    assert not house.link.connected


@pytest.mark.parametrize(
    "changes",
    [
        {"sandbox": "another"},
        {"sandbox": None},
        {"version": PROTOCOL_VERSION + 1},
        {"version": PROTOCOL_VERSION + 2, "oldest": PROTOCOL_VERSION + 1},
        {"version": PROTOCOL_VERSION + 1, "oldest": "1"},
        {"version": str(PROTOCOL_VERSION)},
        {"version": [[]]},
        {"python": {}},
    ],
)
async def test_a_guest_of_another_sandbox_or_version_is_turned_away(house: House, changes: dict[str, Any]) -> None:
    guest = await house.visitor()
    guest.greet(**changes)
    await guest.hung_up()
    assert not house.link.connected
    await house.guest()


async def test_a_second_guest_is_turned_away_and_the_first_stays(house: House) -> None:
    guest = await house.guest()
    second = await house.visitor()
    second.greet()
    await second.hung_up()
    await ping(house, guest)


async def test_of_two_that_came_at_once_the_first_to_greet_is_the_guest(house: House) -> None:
    one, other = await house.visitor(), await house.visitor()
    other.greet()
    await soon(house.link.wait_connected())
    one.greet()
    await one.hung_up()
    await ping(house, other)


async def test_a_user_that_may_not_be_the_guest_is_turned_away(place: Path) -> None:
    link = GuestLink("box", place, group_id=os.getgid(), guest_uids={os.getuid() + 1})
    await link.listen()
    stranger = FakeGuest(*await asyncio.open_unix_connection(place / SOCKET_NAME))
    await stranger.hung_up()
    assert not link.connected
    await stranger.leave()
    await link.close()


NONSENSE = [
    b"GET / HTTP/1.1\r\n\r\n",
    (2**32 - 1).to_bytes(4, "big") + b"\0\x10",
    encode_frame({"type": "unheard of", "execution": "x", "reader": 1}),
    encode_frame({"type": "output", "execution": "x", "reader": 1}),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 3, "offset": 0, "time_s": 0}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": -1, "time_s": 0}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": 0.5, "time_s": 0}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": 10**400, "time_s": 0}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": 0, "time_s": 10**400}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": 0, "time_s": "0"}, b"x"),
    encode_frame({"type": "output", "execution": "x", "reader": 1, "channel": 1, "offset": 0, "time_s": 0}, b""),
    encode_frame({"type": "output", "execution": "x", "reader": True, "channel": 1, "offset": 0, "time_s": 0}, b"x"),
    encode_frame({"type": "subscribed", "execution": "x", "reader": 1, "offsets": {"1": "0", "2": 0}}),
    encode_frame({"type": "subscribed", "execution": "x", "reader": 1, "offsets": []}),
    encode_frame({"type": "released", "execution": "x", "reader": 1, "channel": 1, "offset": 0}),
    encode_frame({"type": "full", "execution": "x", "offsets": None}),
    encode_frame({"type": "stdin_taken", "execution": "x", "offset": 1}),
    encode_frame({"type": "refused", "execution": "x", "code": 5, "message": "x"}),
    encode_frame({"type": "finished", "execution": ["x"]}),
    encode_frame({"type": "pong", "number": "one"}),
    encode_frame({"type": "holds", "execution": None}),
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda data: repr(data[6:70]))
async def test_nonsense_ends_the_connection_and_nothing_else(house: House, nonsense: bytes) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    guest.say_bytes(nonsense)
    await guest.hung_up()
    await soon(house.link.wait_away())
    assert not handle.finished.done()
    again = await house.guest("x")
    finished(again)
    assert (await soon(handle.finished))["exit_code"] == 0


async def test_a_deeply_nested_frame_ends_the_connection(house: House) -> None:
    guest = await house.guest()
    header = b'{"type":"finished","execution":' + b"[" * 5000 + b"]" * 5000 + b"}"
    guest.say_bytes((len(header)).to_bytes(4, "big") + len(header).to_bytes(2, "big") + header)
    await guest.hung_up()


async def test_frames_before_the_greeting_are_nonsense(house: House) -> None:
    visitor = await house.visitor()
    visitor.say("ready")
    await visitor.hung_up()
    assert not house.link.connected


async def test_news_of_executions_that_nobody_knows_is_ignored(house: House) -> None:
    guest = await house.guest("old")
    guest.say("finished", execution="old", exit_code=0)
    guest.say("output", b"x", execution="old", reader=1, channel=1, offset=0, time_s=0)
    await ping(house, guest)


# -- asking


async def ping(house: House, guest: FakeGuest) -> None:
    asking = asyncio.create_task(house.link.ping(PATIENCE_S))
    header, _ = await guest.hear_of("ping")
    guest.say("pong", number=header["number"])
    await asking


async def test_a_guest_that_does_not_answer_is_told_as_unavailable(house: House) -> None:
    guest = await house.guest()
    with pytest.raises(GuestUnavailable, match="does not answer"):
        await house.link.ping(0.01)
    header, _ = await guest.hear_of("ping")
    guest.say("pong", number=header["number"])  # too late, and harmless
    await ping(house, guest)


async def test_parking_waits_for_the_guests_word(house: House) -> None:
    guest = await house.guest()
    parking = asyncio.create_task(house.link.park())
    header, _ = await guest.hear_of("park")
    assert not parking.done()
    guest.say("parked", number=header["number"], killed=0)
    await soon(parking)


# -- executions


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


# -- input


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


# -- reconnecting


async def test_after_a_reconnect_readers_go_on_where_they_were(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    said(guest, 0, b"abc")
    said(guest, 0, b"e", channel=2)
    for _ in range(2):
        await soon(reader.next())
    handle.acknowledge({1: 3})
    await guest.hear_of("acknowledge")
    await house.away(guest)

    guest = await house.guest("x")
    header, _ = await guest.hear()
    assert (header["type"], header["reader"], header["offsets"]) == ("subscribe", 1, {"1": 3, "2": 1})
    assert (await guest.hear())[0]["offsets"] == {"1": 3}  # the acknowledgement may have been lost
    guest.say("subscribed", execution="x", reader=1, offsets={"1": 3, "2": 1})
    said(guest, 3, b"def")
    assert (await soon(reader.next())).data == b"def"


async def test_credit_after_a_reconnect_counts_what_still_waits(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    said(guest, 0, bytes(1000))
    said(guest, 1000, bytes(1000))
    await soon(reader.next())
    await ping(house, guest)
    await house.away(guest)
    guest = await house.guest("x")
    header, _ = await guest.hear()
    assert header["credit_bytes"] == CREDIT_BYTES - 1000 - CHUNK_OVERHEAD_BYTES


async def test_a_job_that_the_guest_does_not_have_is_sent_again(house: House) -> None:
    guest = await house.guest()
    handle, reader = house.link.start("x", JOB, OPTIONS)
    await house.away(guest)
    guest = await house.guest()
    header, payload = await guest.hear()
    assert (header["type"], header["execution"], payload) == ("run", "x", JOB.document)
    header, _ = await guest.hear()
    assert (header["type"], header["reader"]) == ("subscribe", 1)
    guest.say("subscribed", execution="x", reader=1, offsets={"1": 0, "2": 0})
    said(guest, 0, b"ran")
    assert (await soon(reader.next())).data == b"ran"
    assert handle.job is None


async def test_a_job_that_the_guest_has_is_not_sent_again(house: House) -> None:
    guest = await house.guest()
    await house.execution(guest)
    await house.away(guest)
    guest = await house.guest("x")
    assert (await guest.hear())[0]["type"] == "subscribe"
    await guest.silence()


async def test_an_execution_that_the_guest_has_lost_is_not_run_twice(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    said(guest, 0, b"begun")
    await soon(reader.next())
    await house.away(guest)
    guest = await house.guest()
    with pytest.raises(ExecutionNotFound):
        await soon(handle.finished)
    with pytest.raises(ExecutionNotFound):
        await soon(reader.next())
    await guest.silence()


async def test_what_was_said_while_the_guest_was_away_is_said_when_it_is_back(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest, stdin=True)
    await handle.input.write(b"abc", 0)
    await guest.hear_of("stdin")
    guest.say("stdin_taken", execution="x", offset=2)
    said(guest, 0, b"out")
    await soon(reader.next())
    await house.away(guest)
    await handle.input.write(b"def", 3)
    handle.acknowledge({1: 3})
    await handle.end_input()
    handle.cancel()

    guest = await house.guest("x")
    frames = [await guest.hear() for _ in range(6)]
    kinds = [header["type"] for header, _ in frames]
    assert kinds == ["watch_input", "subscribe", "acknowledge", "stdin", "end_of_input", "cancel"]
    assert (frames[3][0]["offset"], frames[3][1]) == (2, b"cdef")


async def test_an_end_that_came_while_the_daemon_was_away_is_heard(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    await house.away(guest)
    guest = await house.visitor()
    guest.say_bytes(encode_frame(HELLO))
    guest.say("holds", execution="x", state="ended")
    finished(guest)
    guest.say("ready")
    assert (await soon(handle.finished))["exit_code"] == 0
    await guest.hear_of("subscribe")
    said(guest, 0, b"whole")
    guest.say("end", execution="x", reader=1)
    assert (await soon(reader.next())).data == b"whole"
    assert await soon(reader.next()) is None


async def test_closing_ends_everything(place: Path) -> None:
    async with opened(place) as house:
        guest = await house.guest()
        handle, _ = await house.execution(guest)
        await house.link.close()
        with pytest.raises(SandboxLost, match="it was removed"):
            await soon(handle.finished)
        await guest.hung_up()
        assert not place.exists()


async def test_a_question_to_a_guest_that_never_comes_leaves_no_fault_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    asking = asyncio.create_task(house.link.ping(0.05))
    await asyncio.sleep(0)  # until it waits for the guest
    house.link.fail(SandboxLost("box", "it fell"))
    with pytest.raises(GuestUnavailable):
        await asking
    del asking
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_nobody_waits_for_goes_with_the_next_frame_or_soon(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    guest.say("finished", execution="x", exit_code=0)
    handle.let_go()
    house.link.send({"type": "cancel", "execution": "y"})
    assert [(await guest.hear())[0]["type"] for _ in range(2)] == ["may_go", "cancel"]
    handle.send("may_go")
    assert (await guest.hear())[0]["type"] == "may_go"


async def test_what_nobody_waits_for_is_not_said_to_the_next_guest(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    handle.let_go()
    await house.away(guest)
    again = await house.guest("x")
    house.link.send({"type": "cancel", "execution": "y"})
    assert (await again.hear_of("cancel"))[0]["execution"] == "y"
    await again.silence()


async def test_who_waits_for_a_guest_to_come_back_hears_at_once_that_it_will_not(house: House) -> None:
    asking = asyncio.create_task(house.link.ask("park", 10 * PATIENCE_S))
    await asyncio.sleep(0)  # it waits from now on
    house.link.fail(SandboxLost("box", "it burned"))
    with pytest.raises(SandboxLost, match="it burned"):
        await soon(asking)
