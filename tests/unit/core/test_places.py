"""Which of several followers releases output, and what an acknowledgement may say."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from enclaved.agent.link import SMALL_TALK_MOST_BYTES
from enclaved.errors import GuestUnavailable, InvalidRequest, OffsetReleased
from enclaved.model import Finished, Notice, NoticeKind, Output, TerminalSize
from tests.unit.core.scripted import World, ends, rest, soon, until, writes

CHUNK = bytes(64 * 1024)


def has(events: list[object], count: int) -> bool:
    """Whether so many have come."""
    return len(events) == count


async def test_the_newest_that_does_not_observe_takes_the_place_of_the_one_before(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    async with execution.attach() as old:
        await anext(old)

        got: list[object] = []

        async def take() -> None:
            async with execution.attach({1: 0, 2: 0}) as new:
                got.extend([await anext(new)])
                while not isinstance(got[-1], Finished):
                    got.extend([await anext(new)])

        taking = asyncio.create_task(take())
        newest, _ = await guest.hear_of("subscribe")
        guest.say("subscribed", execution=execution.handle.name, reader=newest["reader"], offsets={"1": 0, "2": 0})
        # the old one reads far more than is acknowledged at once, and releases nothing any more
        for number in range(5):
            writes(guest, execution, number * len(CHUNK), CHUNK, reader=1)
            assert isinstance(await soon(anext(old)), Output)
        guest.say("full", execution=execution.handle.name, offsets={"1": 5 * len(CHUNK), "2": 0})
        last = asyncio.create_task(anext(old))
        await asyncio.sleep(0)
        assert execution.handle._acknowledged == {}
        # the new one has the same, and releases it when it is full
        for number in range(5):
            writes(guest, execution, number * len(CHUNK), CHUNK, reader=newest["reader"])
            await until(partial(has, got, number + 2))
        header, _ = await guest.hear_of("acknowledge")
        assert header["offsets"]["1"] > 0
        # and the old one hears of what it came too late for
        ends(guest, execution, 1, newest["reader"], bytes_total={"1": 6 * len(CHUNK), "2": 0})
        event = await soon(last)
        assert isinstance(event, Notice)
        assert (event.kind, event.offset, event.length_bytes) == (NoticeKind.GAP, 5 * len(CHUNK), len(CHUNK))
        await soon(taking)
        assert isinstance(got[-1], Finished)


async def test_what_an_earlier_follower_acknowledges_changes_nothing(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    old, new = object(), object()
    async with execution.attach(follower=old) as events:
        await anext(events)
        writes(guest, execution, 0, b"abc")
        await soon(anext(events))
        await execution.acknowledge({1: 1}, old)
        assert (await guest.hear_of("acknowledge"))[0]["offsets"] == {"1": 1}

        async def take() -> None:
            async with execution.attach({1: 1}, follower=new) as taken:
                await anext(taken)
                await execution.acknowledge({1: 3}, old)
                assert execution.handle._acknowledged == {1: 1}
                await execution.acknowledge({1: 2}, new)

        taking = asyncio.create_task(take())
        header, _ = await guest.hear_of("subscribe")
        guest.say("subscribed", execution=execution.handle.name, reader=header["reader"], offsets={"1": 1, "2": 0})
        await soon(taking)
        assert (await guest.hear_of("acknowledge"))[0]["offsets"] == {"1": 2}


async def test_one_who_could_not_follow_has_taken_nobodys_place(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    old = object()
    async with execution.attach(follower=old) as events:
        await anext(events)

        async def fail() -> None:
            async with execution.attach({1: 9}):
                raise AssertionError("it follows")

        failing = asyncio.create_task(fail())
        header, _ = await guest.hear_of("subscribe")
        where = {"channel": 1, "offset": 9, "first_offset": 0}
        guest.say("released", execution=execution.handle.name, reader=header["reader"], **where)
        with pytest.raises(OffsetReleased):
            await soon(failing)
        writes(guest, execution, 0, b"abc")
        await soon(anext(events))
        await execution.acknowledge({1: 3}, old)
        assert (await guest.hear_of("acknowledge"))[0]["offsets"] == {"1": 3}


async def test_nobody_acknowledges_what_was_not_sent(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    async with execution.attach() as events:
        await anext(events)
        writes(guest, execution, 0, b"abc")
        await soon(anext(events))
        with pytest.raises(InvalidRequest, match="1000000000000000 of stdout is beyond what was sent"):
            await execution.acknowledge({1: 10**15})
        assert not execution.explicit_acknowledgements
        await execution.acknowledge({1: 3})
        assert (await guest.hear_of("acknowledge"))[0]["offsets"] == {"1": 3}


async def test_an_acknowledgement_that_is_sooner_than_the_guests_word_waits_for_it(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    reader = execution.handle.subscribe({1: 5, 2: 0})
    acknowledging = asyncio.create_task(execution.acknowledge({1: 5}))
    await guest.hear_of("subscribe")
    guest.say("subscribed", execution=execution.handle.name, reader=reader.number, offsets={"1": 5, "2": 0})
    await soon(acknowledging)
    assert (await guest.hear_of("acknowledge"))[0]["offsets"] == {"1": 5}


async def test_a_guest_that_does_not_read_is_told_the_last_of_what_replaces_itself_and_nothing_else(
    world: World,
) -> None:
    guest = await world.guest()
    execution = await world.open(terminal=TerminalSize(24, 80))
    async with execution.attach() as events:
        await anext(events)
        guest.say("output", b"abc", execution=execution.handle.name, reader=1, channel=3, offset=0, time_s=0.0)
        await soon(anext(events))
        peer = world.link._peer
        assert peer is not None
        sizes = 0
        while not world.link.congested:
            execution.resize(TerminalSize(24, sizes := sizes + 1))
        assert peer._transport is not None
        waiting_bytes = peer._transport.get_write_buffer_size()
        assert waiting_bytes < SMALL_TALK_MOST_BYTES + 512 * 1024
        for columns in range(1, 1001):
            execution.resize(TerminalSize(24, columns))
            execution.cancel("a caller")
        await execution.acknowledge({3: 2})
        with pytest.raises(GuestUnavailable, match="does not read"):
            execution.signal(15)
        with pytest.raises(GuestUnavailable, match="does not read"):
            async with execution.attach():
                raise AssertionError("it follows")
        with pytest.raises(GuestUnavailable, match="does not read"):
            await world.contexts.list("box")
        execution.handle.readers[1].ask_sample()
        assert peer._transport.get_write_buffer_size() == waiting_bytes
        heard = [(await guest.hear_of("resize"))[0]["columns"] for _ in range(sizes + 1)]
        assert heard == [*range(1, sizes + 1), 1000]
        kinds = {(await guest.hear())[0]["type"] for _ in range(2)}
        assert kinds == {"cancel", "acknowledge"}
        assert not world.link.congested
        execution.signal(15)
        await guest.hear_of("signal")
        ends(guest, execution, 1)
        assert isinstance((await soon(rest(events)))[-1], Finished)
