"""What happens to an execution while it runs: what is said to it, what it waits for, what ends it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from enclaved.agent.handle import RunOptions
from enclaved.core import counting
from enclaved.errors import InvalidRequest
from enclaved.model import (
    CommandJob,
    Finished,
    LimitHit,
    OnAwaitingInput,
    Retention,
    SignalSender,
    TerminalSize,
    ToolCall,
    Verdict,
)
from enclaved.runtime.base import Counters
from tests.unit.core.scripted import World, ends, rest, soon, until

KILLED = {"exit_code": None, "signal": 9}
SIZE = TerminalSize(24, 80)


# -- saying something


async def test_signals_and_sizes_reach_the_guest_and_an_ended_one_is_left_alone(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(terminal=SIZE)
    execution.signal(15)
    execution.signal(64, leader_only=True)
    execution.resize(TerminalSize(30, 90))
    frames = [(await guest.hear_of(kind))[0] for kind in ("signal", "signal", "resize")]
    assert [(frame["number"], frame["leader_only"]) for frame in frames[:2]] == [(15, False), (64, True)]
    assert (frames[2]["rows"], frames[2]["columns"]) == (30, 90)
    for wrong in (0, 65, -1):
        with pytest.raises(InvalidRequest):
            execution.signal(wrong)
    ends(guest, execution, exit_code=None, signal=15, signalled=[15])
    finished = await soon(execution.ended)
    assert (finished.verdict, finished.signal_sender) == (Verdict.SIGNALED, SignalSender.CALLER)
    await guest.hear_of("unsubscribe")
    execution.signal(9)
    execution.resize(SIZE)
    await guest.silence()


async def test_only_a_terminal_has_a_size_and_only_an_input_takes_input(world: World) -> None:
    await world.guest()
    execution = await world.open()
    with pytest.raises(InvalidRequest, match="no terminal"):
        execution.resize(SIZE)
    with pytest.raises(InvalidRequest, match="reads no input"):
        await execution.write_stdin(b"x")


async def test_signals_that_come_while_the_guest_is_away_are_sent_when_it_is_back(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(terminal=SIZE)
    await guest.hear_of("watch_input")
    await guest.leave()
    await soon(world.link.wait_away())
    for number in range(1, 30):
        execution.signal(number)
    execution.resize(TerminalSize(1, 2))
    guest = await world.guest({"type": "holds", "execution": execution.handle.name, "state": "running"})
    await guest.hear_of("resize")
    numbers = [(await guest.hear_of("signal"))[0]["number"] for _ in range(16)]
    assert numbers == list(range(1, 17))
    await guest.silence()


# -- input that nobody sends


async def test_a_program_that_waits_for_input_is_told_of_again_and_again(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True)
    async with execution.attach() as events:
        await anext(events)
        for _ in range(2):
            guest.say("awaiting_input", execution=execution.handle.name, waiting=True)
            guest.say("awaiting_input", execution=execution.handle.name, waiting=True)
            assert (await soon(anext(events))).kind.value == "awaiting_input"
            guest.say("awaiting_input", execution=execution.handle.name, waiting=False)
        ends(guest, execution, 1)
        assert [type(event) for event in await soon(rest(events))] == [Finished]
    assert world.metrics.value("enclaved_execution_notices_total", kind="awaiting_input") == 2


async def test_who_attaches_while_a_program_waits_hears_of_it(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True)
    guest.say("awaiting_input", execution=execution.handle.name, waiting=True)
    async with execution.attach(observe=True) as events:
        await anext(events)
        assert (await soon(anext(events))).kind.value == "awaiting_input"
    async with asyncio.TaskGroup() as tasks:

        async def again() -> None:
            async with execution.attach({1: 5}, observe=True) as events:
                await anext(events)
                assert (await soon(anext(events))).kind.value == "awaiting_input"

        tasks.create_task(again())
        header, _ = await guest.hear_of("subscribe")
        guest.say("subscribed", execution=execution.handle.name, reader=header["reader"], offsets={"1": 5, "2": 0})


async def test_a_wish_to_kill_what_waits_for_input_is_fulfilled_and_told(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(stdin=True, on_awaiting_input=OnAwaitingInput.KILL)
    guest.say("awaiting_input", execution=execution.handle.name, waiting=True)
    await guest.hear_of("cancel")
    ends(guest, execution, cause="cancel", **KILLED)
    finished = await soon(execution.ended)
    assert finished.verdict is Verdict.CANCELLED
    assert "waited for input" in finished.cancelled_by


# -- what the control group counts


async def test_a_kill_for_memory_is_told_of_the_one_that_ran_alone(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    world.meters.found = Counters(1, 0, memory_peak_bytes=99, memory_limit_bytes=100)
    ends(guest, execution, **KILLED)
    finished = await soon(execution.ended)
    assert (finished.verdict, finished.signal_sender) == (Verdict.OUT_OF_MEMORY, SignalSender.KERNEL)
    assert finished.limits_hit == (LimitHit("memory", 1, 99, 100),)
    later = await world.open()
    ends(guest, later, **KILLED)
    finished = await soon(later.ended)
    assert (finished.verdict, finished.limits_hit) == (Verdict.SIGNALED, ())


async def test_a_kill_for_memory_beside_others_is_pinned_on_nobody(world: World) -> None:
    guest = await world.guest()
    first, second = await world.open(), await world.open()
    assert [world.ledger.rows[execution.id].alone for execution in (first, second)] == [False, False]
    world.meters.found = Counters(1, 0)
    ends(guest, first, **KILLED)
    finished = await soon(first.ended)
    assert finished.verdict is Verdict.SIGNALED
    assert finished.limits_hit == (LimitHit("memory", 1, 0, world.record.spec.memory_limit_bytes),)
    ends(guest, second, **KILLED)
    assert (await soon(second.ended)).verdict is Verdict.SIGNALED


async def test_who_is_left_alone_is_charged_with_what_comes_after(world: World) -> None:
    guest = await world.guest()
    first, second = await world.open(), await world.open()
    world.meters.found = Counters(1, 0)
    ends(guest, first)
    await soon(first.ended)
    world.meters.found = Counters(2, 0)
    ends(guest, second, **KILLED)
    finished = await soon(second.ended)
    assert finished.verdict is Verdict.OUT_OF_MEMORY
    assert finished.limits_hit[0].count == 2


async def test_a_policy_that_kills_at_the_limit_of_processes_is_carried_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "PIDS_LOOK_EVERY_S", 0.001)
    object.__setattr__(world.record.spec, "kill_at_pids_limit", True)
    try:
        guest = await world.guest()
        execution = await world.open()
        world.meters.found = Counters(0, 3, pids_peak=64, pids_limit=64)
        await guest.hear_of("cancel")
        ends(guest, execution, cause="cancel", **KILLED)
        finished = await soon(execution.ended)
        assert (finished.verdict, finished.cancelled_by) == (Verdict.PIDS_LIMIT, "")
        assert finished.limits_hit == (LimitHit("pids", 3, 64, 64),)
        await until(lambda: not world.executions._counting._pids_seen)
    finally:
        object.__setattr__(world.record.spec, "kill_at_pids_limit", False)


async def test_without_such_a_policy_the_limit_is_only_told(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    world.meters.found = Counters(0, 3)
    ends(guest, execution)
    finished = await soon(execution.ended)
    assert (finished.verdict, finished.limits_hit[0].limit) == (Verdict.EXITED, "pids")


async def test_the_daemons_own_executions_are_neither_listed_nor_written_down(world: World) -> None:
    await world.guest()
    execution = world.executions.start(world.record, "file", CommandJob(shell="x"), RunOptions(timeout_s=1))
    assert world.executions.get(execution.id) is execution
    assert world.executions.list().executions == ()
    assert json.dumps(list(world.ledger.rows)) == "[]"


async def test_only_who_wants_the_whole_result_is_not_told_of_parts(world: World) -> None:
    guest = await world.guest()

    async def subscribed() -> dict[str, Any]:
        header, _ = await guest.hear_of("run")
        found: dict[str, Any] = header["subscribe"]
        return found

    call = ToolCall("box", "shell_executor", {"command": "x"})
    running = [asyncio.create_task(world.executions.run(call))]
    assert (await subscribed())["whole"] is True
    running.append(asyncio.create_task(world.executions.run(replace(call, retention=Retention.KEEP_LAST))))
    assert "whole" not in await subscribed(), "the oldest would be gone"
    await world.open()
    assert "whole" not in await subscribed()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
