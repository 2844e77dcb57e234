"""The registry of executions: started once each, listed, waited for, left by their clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from enclaved.core import retention, tombstones
from enclaved.errors import (
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    LimitReached,
    NoSpace,
    SandboxNotFound,
    WrongState,
)
from enclaved.model import Finished, Retention, SignalSender, TerminalSize, ToolCall, Verdict
from tests.unit.core.scripted import World, ends, soon, until, writes

KILLED = {"exit_code": None, "signal": 9}
SIZE = TerminalSize(24, 80)


async def started(world: World, **call: Any) -> dict[str, Any]:
    """The `run` frame that a call makes."""
    guest = await world.guest()
    await world.open(**call)
    header, _ = await guest.hear_of("run")
    return header


# -- starting


async def test_the_same_id_is_the_same_execution_and_is_sent_once(world: World) -> None:
    guest = await world.guest()
    first, second = await asyncio.gather(world.open(execution_id="mine"), world.open(execution_id="mine"))
    assert first is second
    await guest.hear_of("run")
    await guest.silence()
    world.houses.records["other"] = world.record
    with pytest.raises(InvalidRequest, match="another sandbox"):
        await world.executions.open(ToolCall("other", "shell_executor", {"command": "x"}, execution_id="mine"))


async def test_an_id_that_is_used_again_after_nothing_is_left_never_meets_what_the_guest_still_keeps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORD_KEPT_S", 0.01)
    monkeypatch.setattr(tombstones, "TOMBSTONES_PER_SANDBOX", 0)
    guest = await world.guest()
    old = await world.open(execution_id="mine")
    ends(guest, old)
    await soon(old.ended)
    await until(lambda: "mine" not in world.executions._by_id)
    new = await world.open(execution_id="mine")
    names = [(await guest.hear_of("run"))[0]["execution"] for _ in range(2)]
    assert names == [old.handle.name, new.handle.name]
    assert len(set(names)) == 2
    writes(guest, old, 0, b"old")
    writes(guest, new, 0, b"new")
    ends(guest, new, 1)
    result = await soon(new.collect())
    assert (result.execution_id, result.stdout) == ("mine", b"new")


async def test_it_is_written_down_before_it_is_sent_and_dropped_when_it_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORD_KEPT_S", 0.2)
    with pytest.raises(GuestUnavailable):
        await world.open()
    assert world.ledger.rows == {}
    guest = await world.guest()
    world.ledger.error = NoSpace("state.db", "the disk is full")
    with pytest.raises(NoSpace):
        await world.open()
    await guest.silence()
    world.ledger.error = None
    execution = await world.open(detach=True)
    mine = execution.id
    row = world.ledger.rows[mine]
    assert (row.sandbox_id, row.tool, row.detach, row.finished) == ("box", "shell_executor", True, None)
    ends(guest, execution, exit_code=3)
    await soon(execution.ended)
    await until(lambda: world.ledger.rows[mine].finished is not None)
    finished = world.ledger.rows[mine].finished
    assert finished is not None
    assert finished.exit_code == 3
    await until(lambda: not world.ledger.rows)


async def test_an_id_that_is_used_again_at_once_keeps_nothing_of_the_one_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 0)
    monkeypatch.setattr(tombstones, "TOMBSTONES_PER_SANDBOX", 0)
    guest = await world.guest()
    old = await world.open(execution_id="mine")
    ends(guest, old)
    await soon(old.ended)
    new = await world.open(execution_id="mine")
    assert new is not old
    world.executions.settle()
    assert world.ledger.rows["mine"].finished is None


async def test_a_full_disk_keeps_nobody_from_cancelling(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    world.ledger.error = NoSpace("state.db", "the disk is full")
    execution.cancel("a caller")
    await guest.hear_of("cancel")


async def test_what_a_caller_chooses_reaches_the_guest(world: World) -> None:
    header = await started(
        world,
        idle_timeout_s=2.5,
        terminal=SIZE,
        output_limit_bytes=10,
        retention=Retention.KEEP_LAST,
        keep_last_bytes=5000,
    )
    assert header["idle_timeout_s"] == 2.5
    assert header["terminal"] == [24, 80]
    assert header["keep_last_bytes"] == 5000
    assert header["output_limit_bytes"] == 10
    assert header["stdin"] is True


async def test_a_plain_call_carries_no_more_than_it_needs(world: World) -> None:
    assert not {"idle_timeout_s", "terminal", "keep_last_bytes"} & set(await started(world))


async def test_a_detached_one_keeps_its_last_output(world: World) -> None:
    assert (await started(world, detach=True))["keep_last_bytes"] == 1024 * 1024


async def test_a_detached_one_may_keep_all_its_output(world: World) -> None:
    assert "keep_last_bytes" not in await started(world, detach=True, retention=Retention.UNTIL_ACK)


async def test_a_call_may_name_its_context(world: World) -> None:
    header = await started(world, tool="python_executor", parameters={"code": "1"}, context="analysis")
    assert header["context"] == "analysis"


@pytest.mark.parametrize(
    ("tool", "parameters", "call", "field", "hint"),
    [
        ("shell_executor", {"command": "x"}, {"context": "a"}, "context", "python_executor"),
        ("python_executor", {"code": "1", "isolated": True}, {"context": "a"}, "context", "isolated"),
        ("python_executor", {"code": "1"}, {"context": "a/b"}, "context", "must match"),
        ("python_executor", {"code": "1"}, {"terminal": SIZE}, "terminal", "isolated: true"),
        ("file_operation", {"operation": "read", "file_path": "a"}, {"terminal": SIZE}, "terminal", "commands"),
    ],
)
async def test_what_a_tool_cannot_have_is_refused(
    world: World, tool: str, parameters: dict[str, Any], call: dict[str, Any], field: str, hint: str
) -> None:
    await world.guest()
    with pytest.raises(InvalidRequest, match=hint) as caught:
        await world.open(tool, parameters, **call)
    assert caught.value.violations[0].field == field
    assert world.ledger.rows == {}


async def test_a_context_that_is_not_open_is_told_with_what_to_do(world: World) -> None:
    guest = await world.guest()
    execution = await world.open("python_executor", {"code": "1"}, context="analysis")
    await guest.hear_of("run")
    message = "context 'analysis' is not open"
    guest.say("refused", execution=execution.handle.name, code="no_context", message=message)
    with pytest.raises(WrongState, match="open it first"):
        await soon(execution.collect())
    with pytest.raises(ExecutionNotFound):
        world.executions.get(execution.id)
    world.executions.settle()
    assert world.ledger.rows == {}


async def test_a_detached_call_that_the_guest_refuses_says_so_at_once(world: World) -> None:
    guest = await world.guest()
    call = ToolCall("box", "python_executor", {"code": "1"}, context="analysis", detach=True, execution_id="mine")
    running = asyncio.create_task(world.executions.run(call))
    header, _ = await guest.hear_of("run")
    guest.say("refused", execution=header["execution"], code="no_context", message="not open")
    ping, _ = await guest.hear_of("ping")
    guest.say("pong", number=ping["number"])
    with pytest.raises(WrongState):
        await soon(running)


async def test_a_detached_call_that_is_refused_later_ends_with_the_reason(world: World) -> None:
    guest = await world.guest()
    running = asyncio.create_task(
        world.executions.run(ToolCall("box", "shell_executor", {"command": "x"}, detach=True, execution_id="mine"))
    )
    ping, _ = await guest.hear_of("ping")
    guest.say("pong", number=ping["number"])
    result = await soon(running)
    assert (result.finished, result.execution_id) == (None, "mine")
    execution = world.executions.get("mine")
    guest.say("refused", execution=execution.handle.name, code="no_process", message="no process could be started")
    info = await soon(world.executions.wait("mine"))
    assert info.finished.verdict is Verdict.INTERNAL_ERROR
    assert "no process could be started" in info.finished.message


async def test_there_are_no_more_than_the_limit_at_once(world: World) -> None:
    world.executions.most = 2
    guest = await world.guest()
    first = await world.open()
    await world.open()
    with pytest.raises(LimitReached):
        await world.open()
    ends(guest, first)
    await soon(first.ended)
    await world.open()


# -- looking


async def test_executions_are_listed_in_order_a_page_at_a_time_whatever_comes_and_goes(world: World) -> None:
    guest = await world.guest()
    made = [await world.open() for _ in range(5)]
    page = world.executions.list(page_size=2)
    ids = [execution.id for execution in page.executions]
    ends(guest, made[0])
    await soon(made[0].ended)
    made.append(await world.open())
    while page.next_page_token:
        page = world.executions.list(page_size=2, page_token=page.next_page_token)
        ids += [execution.id for execution in page.executions]
    assert ids == [execution.id for execution in made]
    running = world.executions.list(running=True).executions
    ended = world.executions.list(sandbox_id="box", running=False).executions
    assert [execution.id for execution in running] == ids[1:]
    assert [(execution.id, execution.finished is None) for execution in ended] == [(ids[0], False)]


async def test_a_listing_refuses_what_makes_no_sense(world: World) -> None:
    await world.guest()
    for _ in range(2):
        await world.open()
    token = world.executions.list(page_size=1).next_page_token
    for wrong in ("x", "1-0", token + "0"):
        with pytest.raises(InvalidRequest, match="page_token"):
            world.executions.list(page_token=wrong)
    with pytest.raises(InvalidRequest, match="page_token"):
        world.executions.list(page_token=token, running=True)
    with pytest.raises(InvalidRequest, match="page_size"):
        world.executions.list(page_size=1001)
    with pytest.raises(SandboxNotFound):
        world.executions.list(sandbox_id="none")


async def test_an_execution_tells_about_itself(world: World) -> None:
    guest = await world.guest()
    execution = await world.open("python_executor", {"code": "1"}, context="a", stdin=True, timeout_s=7)
    info = execution.info()
    assert (info.sandbox_id, info.tool, info.context, info.timeout_s) == ("box", "python_executor", "a", 7)
    assert (info.readers, info.detach, info.terminal, info.awaiting_input, info.finished) == (
        0,
        False,
        False,
        False,
        None,
    )
    assert info.created_at == execution.created_at
    async with execution.attach() as events:
        await anext(events)
        guest.say("awaiting_input", execution=execution.handle.name, waiting=True)
        await anext(events)
        assert (execution.info().readers, execution.info().awaiting_input) == (1, True)
    ends(guest, execution)
    await soon(execution.ended)
    assert (execution.info().readers, execution.info().awaiting_input) == (0, False)


async def test_who_waits_hears_of_the_end_or_what_is_known_when_the_wait_is_over(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(detach_grace_s=0.0)
    assert (await world.executions.wait(execution.id, wait_s=0.001)).finished is None
    waiting = asyncio.create_task(world.executions.wait(execution.id, "box"))
    await asyncio.sleep(0)
    ends(guest, execution, exit_code=4)
    assert (await soon(waiting)).finished.exit_code == 4
    assert "cancel" not in [header["type"] for header, _ in guest._frames]
    for wrong in (-1.0, float("nan"), 3601.0):
        with pytest.raises(InvalidRequest, match="wait_s"):
            await world.executions.wait(execution.id, wait_s=wrong)
    with pytest.raises(ExecutionNotFound):
        await world.executions.wait(execution.id, "other")


# -- clients that leave


async def test_who_leaves_without_a_grace_cancels_at_once(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(detach_grace_s=0.0)
    async with execution.attach() as events:
        await anext(events)
    await guest.hear_of("cancel")
    ends(guest, execution, cause="cancel", **KILLED)
    finished: Finished = await soon(execution.ended)
    assert (finished.verdict, finished.signal_sender) == (Verdict.CANCELLED, SignalSender.DAEMON)
    assert finished.cancelled_by == "the daemon: no client was attached for the detach grace"


async def test_who_only_observes_keeps_no_execution_from_its_grace(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(detach_grace_s=0.0)
    async with AsyncExitStack() as observers:
        async with execution.attach() as events:
            await anext(events)
            watching = asyncio.create_task(observers.enter_async_context(execution.attach(observe=True)))
            header, _ = await guest.hear_of("subscribe")
            guest.say("subscribed", execution=execution.handle.name, reader=header["reader"], offsets={"1": 0, "2": 0})
            await soon(watching)
        await guest.hear_of("cancel")
        assert (execution.info().readers, "no client" in execution.cancelled_by) == (1, True)
        ends(guest, execution, cause="cancel", **KILLED)
        await soon(execution.ended)


async def test_who_only_observed_starts_no_grace_by_leaving(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(detach_grace_s=0.0)
    async with execution.attach(observe=True) as events:
        await anext(events)
    await guest.hear_of("unsubscribe")
    await guest.silence()
    assert execution.cancelled_by == ""


async def test_a_detached_execution_goes_on_without_a_client(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(detach=True, detach_grace_s=0.0)
    async with execution.attach() as events:
        await anext(events)
    await guest.hear_of("unsubscribe")
    await guest.silence()
    assert execution.cancelled_by == ""
