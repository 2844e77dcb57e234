"""What one follower of an execution gets: output, samples, gaps and the end, in one order and within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclaved.agent.reader import CREDIT_BYTES
from enclaved.errors import InvalidRequest, OffsetReleased
from enclaved.model import (
    Finished,
    Notice,
    NoticeKind,
    Output,
    ResourceUsage,
    Retention,
    Started,
    StatsSample,
    TerminalSize,
)
from tests.unit.core.scripted import World, ends, rest, soon, until, writes

USAGE = {"cpu_user_s": 0.5, "cpu_system_s": 0.25, "memory_bytes": 7, "memory_peak_bytes": 9, "pids": 2}


async def test_samples_come_at_the_interval_with_what_the_sandbox_uses(world: World) -> None:
    world.meters.used = ResourceUsage(cpu_user_s=3, memory_bytes=99)
    guest = await world.guest()
    execution = await world.open()
    async with execution.attach(stats_interval_s=0.05) as events:
        await anext(events)
        for time_s in (1.5, 2.5):
            asked = asyncio.ensure_future(anext(events))
            header, _ = await guest.hear_of("sample")
            guest.say(
                "sampled",
                execution=execution.handle.name,
                number=header["number"],
                time_s=time_s,
                usage={**USAGE, "io_read_bytes": 1, "io_write_bytes": 2},
            )
            sample = await soon(asked)
            assert isinstance(sample, StatsSample)
            assert sample.time_s == time_s
            assert sample.execution == ResourceUsage(0.5, 0.25, 9, 1, 2, 7, 2)
            assert sample.sandbox == world.meters.used
        ends(guest, execution, 1)
        assert [type(event) for event in await soon(rest(events))] == [Finished]


async def test_who_reads_slowly_misses_samples_and_nothing_else(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True)
    async with execution.attach(stats_interval_s=0.05) as events:
        await anext(events)
        name = execution.handle.name
        writes(guest, execution, 0, b"one")
        for number in range(5):
            header, _ = await guest.hear_of("sample")
            guest.say("sampled", execution=name, number=header["number"], time_s=float(number), usage={})
            guest.say("awaiting_input", execution=name, waiting=True)
            guest.say("awaiting_input", execution=name, waiting=False)
        writes(guest, execution, 3, b"two")
        ends(guest, execution, 1)
        await soon(execution.ended)
        found = await soon(rest(events))
    assert [type(event) for event in found] == [StatsSample, Output, Notice, Output, Finished]
    assert found[0].time_s == 4.0
    assert found[0].sandbox is None


async def test_a_guest_that_does_not_answer_is_not_asked_again_and_again(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    async with execution.attach(stats_interval_s=0.05) as events:
        await anext(events)
        await guest.hear_of("sample")
        reader = execution.handle.readers[1]
        for _ in range(10):
            reader.ask_sample()
        guest.say("sampled", execution=execution.handle.name, number=1, time_s=1.0, usage={})
        guest.say("sampled", execution=execution.handle.name, number=1, time_s=2.0, usage={})
        assert (await soon(anext(events))).time_s == 1.0
        header, _ = await guest.hear_of("sample")
        assert header["number"] == 1


async def test_nobody_is_asked_for_samples_that_no_client_wants(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    async with execution.attach() as events:
        await anext(events)
        await guest.hear_of("run")
        await guest.silence()
    for wrong in (0.0, 0.01, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="stats_interval_s"):
            async with execution.attach(stats_interval_s=wrong):
                pass


async def test_what_was_dropped_is_told_as_a_gap_and_who_keeps_how_much(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(retention=Retention.KEEP_LAST, keep_last_bytes=5000)
    writes(guest, execution, 10, b"late")
    ends(guest, execution, 1, bytes_total={"1": 20, "2": 0})
    async with execution.attach() as events:
        started, first, output, last, finished = await soon(rest(events))
    assert isinstance(started, Started)
    assert (first.kind, first.offset, first.length_bytes, first.channel) == (NoticeKind.GAP, 0, 10, 1)
    assert "only the last 5000 are kept" in first.message
    assert output.data == b"late"
    assert (last.kind, last.offset, last.length_bytes) == (NoticeKind.GAP, 14, 6)
    assert isinstance(finished, Finished)


async def test_a_result_with_a_gap_stops_there_and_the_rest_is_for_those_who_attach(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(retention=Retention.KEEP_LAST)
    writes(guest, execution, 0, b"abc")
    writes(guest, execution, 10, b"late")
    ends(guest, execution, 1)
    result = await soon(execution.collect())
    assert (result.stdout, result.finished) == (b"abc", None)


async def test_a_terminal_has_one_channel(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(terminal=TerminalSize(24, 80))
    writes(guest, execution, 0, b"$ ", channel=3)
    ends(guest, execution, 1, bytes_total={"3": 2})
    async with execution.attach({3: 0}) as events:
        started, output, _ = await soon(rest(events))
    assert started.offsets == {3: 0}
    assert (output.channel, output.data) == (3, b"$ ")
    with pytest.raises(InvalidRequest, match="no channel stdout"):
        async with execution.attach({1: 5}):
            pass


async def test_output_on_a_channel_that_an_execution_does_not_have_ends_the_connection(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    writes(guest, execution, 0, b"x", channel=3)
    await guest.hung_up()
    assert not world.link.connected


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "sampled", "number": 1, "time_s": 1.0},
        {"type": "sampled", "number": 1, "time_s": -1.0, "usage": {}},
        {"type": "sampled", "number": 1, "time_s": 1.0, "usage": {"pids": -1}},
        {"type": "sampled", "number": 1, "time_s": 1.0, "usage": {"cpu_user_s": "much"}},
        {"type": "sampled", "number": 1, "time_s": 1.0, "usage": {"memory_bytes": True}},
        {"type": "awaiting_input", "waiting": 1},
        {"type": "output", "reader": 1, "channel": 1, "offset": 0, "time_s": True},
        {"type": "output", "reader": 1, "channel": 1, "offset": 0, "time_s": 0.0, "late": "yes"},
    ],
)
async def test_a_frame_of_the_wrong_kind_ends_the_connection(world: World, frame: dict[str, Any]) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True)
    await guest.hear_of("run")
    guest.say(frame.pop("type"), b"x", execution=execution.handle.name, **frame)
    await guest.hung_up()


async def test_output_that_was_written_between_two_calls_says_so(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    guest.say("output", b"x", execution=execution.handle.name, reader=1, channel=1, offset=0, time_s=0.0, late=True)
    ends(guest, execution, 1)
    async with execution.attach() as events:
        _, output, _ = await soon(rest(events))
    assert output.late is True


async def test_a_position_that_is_not_kept_is_told_with_the_first_that_is(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    attaching = asyncio.create_task(execution.attach({1: 999}).__aenter__())
    header, _ = await guest.hear_of("subscribe")
    assert header["offsets"] == {"1": 999}
    guest.say(
        "released", execution=execution.handle.name, reader=header["reader"], channel=1, offset=999, first_offset=7
    )
    with pytest.raises(OffsetReleased) as caught:
        await soon(attaching)
    assert (caught.value.channel, caught.value.first_offset) == ("stdout", 7)


async def test_what_waits_for_a_reader_is_bounded_whatever_the_guest_says(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True)
    async with execution.attach() as events:
        await anext(events)
        name, reader = execution.handle.name, execution.handle.readers[1]
        for _ in range(3000):
            guest.say("awaiting_input", execution=name, waiting=True)
            guest.say("awaiting_input", execution=name, waiting=False)
        writes(guest, execution, 0, b"x")
        await until(lambda: reader._waiting_bytes > 0)
        assert len(reader._items) == 2
    assert CREDIT_BYTES < 200_000


async def test_clients_that_follow_are_counted(world: World) -> None:
    await world.guest()
    execution = await world.open()
    async with execution.attach() as events:
        await anext(events)
        assert world.metrics.value("enclaved_execution_readers") == 1
    assert world.metrics.value("enclaved_execution_readers") == 0
