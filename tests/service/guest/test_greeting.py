"""What a guest tells a daemon that has never seen its executions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.guest.wire import Header, Run, WireGuest, wire_guest


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


def held(guest: WireGuest, run: Run) -> Header:
    (frame,) = [frame for frame in guest.greeting if frame["type"] == "holds" and frame["execution"] == run.name]
    return {name: value for name, value in frame.items() if name not in ("type", "execution")}


async def test_a_program_that_runs_is_held_with_its_places(guest: WireGuest) -> None:
    run = guest.shell("echo first; echo error >&2; read x; echo $x; exec sleep 1000", stdin=True)
    guest.type(run, "typed\nmore\n", 0)
    await guest.written(run, b"typed\n")
    await guest.until(lambda: run.output(2) == b"error\n")
    guest.send("acknowledge", execution=run.name, offsets={"1": 12, "2": 6})
    await guest.ping()
    await guest.drop()
    assert held(guest, run) == {
        "state": "running",
        "stdin_offset": 11,
        "stdin_ended": False,
        "first_offsets": {"1": 12, "2": 6},
        "end_offsets": {"1": 12, "2": 6},
    }
    assert [frame["type"] for frame in guest.greeting] == ["hello", "holds", "ready"]
    guest.send("end_of_input", execution=run.name)
    await guest.ping()
    await guest.drop()
    assert held(guest, run)["stdin_ended"] is True


async def test_a_program_that_has_ended_is_held_with_its_end(guest: WireGuest) -> None:
    run = guest.shell("echo text; exit 4", keep_last_bytes=10**6)
    await guest.end(run)
    await guest.drop()
    assert held(guest, run) == {
        "state": "ended",
        "stdin_offset": 0,
        "stdin_ended": False,
        "first_offsets": {"1": 0, "2": 0},
        "end_offsets": {"1": 5, "2": 0},
    }
    assert [frame["type"] for frame in guest.greeting] == ["hello", "holds", "finished", "ready"]


async def test_a_terminal_is_held_as_one_channel_and_can_be_taken_up_by_a_new_reader(guest: WireGuest) -> None:
    run = guest.command("cat", terminal=[24, 80])
    offset = guest.type(run, "one\n", 0)
    await guest.shown(run, "one\r\none\r\n")
    await guest.drop()
    assert held(guest, run) == {
        "state": "running",
        "stdin_offset": 4,
        "stdin_ended": False,
        "first_offsets": {"3": 0},
        "end_offsets": {"3": 10},
    }
    guest.follow(run, 2, c3=5)
    guest.type(run, "two\n", offset)
    await guest.until(lambda: run.output(3, reader=2) == b"one\r\ntwo\r\ntwo\r\n")
    guest.follow(run, 3, c1=0)  # it has no such channel
    await guest.until(lambda: run.last("released"))
    guest.send("signal", execution=run.name, number=9, leader_only=True)
    assert (await guest.end(run))["signal"] == 9


async def test_executions_that_wait_are_held_too(guest: WireGuest) -> None:
    first = guest.python("input()", context="default", stdin=True)
    second = guest.python("print('second')", context="default")
    await guest.ping()
    await guest.drop()
    assert (held(guest, first)["state"], held(guest, second)["state"]) == ("running", "queued")
    guest.follow(second, 1)
    guest.type(first, "\n", 0)
    await guest.end(second)
    assert second.output() == b"second\n"
