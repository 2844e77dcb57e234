"""The daemon's side of the connection: who may come in, and what is asked of a guest."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.limits import PROTOCOL_VERSION
from enclaved.agent.link import SOCKET_NAME, GuestLink
from enclaved.errors import GuestUnavailable, NoSpace
from tests.unit.agent.house import House, finished, opened, ping, soon
from tests.unit.agent.scripted import FakeGuest

# -- listening, and who may come in -------------------------------------------------------------------------------


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


# -- asking -------------------------------------------------------------------------------------------------------


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
