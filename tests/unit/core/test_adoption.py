"""What a daemon makes of executions that an earlier one has written down: they go on, and none runs twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclaved.agent import link
from enclaved.agent.guest.limits import STDIN_WINDOW_BYTES
from enclaved.core import counting
from enclaved.core.execution import Execution
from enclaved.errors import InvalidRequest, SandboxLost
from enclaved.model import Finished, NoticeKind, Output, Started, Verdict
from enclaved.runtime.base import Counters
from tests.unit.agent.scripted import FakeGuest
from tests.unit.core.scripted import World, ends, rest, soon, until, writes


def held(execution: Execution, state: str = "running", **fields: Any) -> dict[str, Any]:
    """What a guest says of an execution that it has."""
    return {"type": "holds", "execution": execution.handle.name, "state": state, **fields}


async def killed(world: World, **call: Any) -> Execution:
    """Starts an execution, kills the daemon and lets the next one take it up; its guest is not there yet."""
    guest = await world.guest()
    await world.open(execution_id="mine", **call)
    await guest.hear_of("run")
    await again(world)
    return world.executions.get("mine")


async def again(world: World) -> None:
    """Kills the daemon, and lets the next one take up what is written down."""
    world.executions.settle()
    await world.kill()
    world.restart()
    for row in sorted(world.ledger.rows.values(), key=lambda row: row.created_at):
        world.executions.adopt(world.record, row)
    await world.link.listen()


async def follows(guest: FakeGuest, execution: Execution, first: dict[str, int]) -> int:
    """Answers a new reader of an execution."""
    header, _ = await guest.hear_of("subscribe")
    guest.say("subscribed", execution=execution.handle.name, reader=header["reader"], offsets=first)
    return int(header["reader"])


async def test_one_that_runs_goes_on_and_is_not_sent_again(world: World) -> None:
    execution = await killed(world, timeout_s=7)
    assert execution.handle.name == world.ledger.rows["mine"].id + ":" + execution.handle.name.split(":")[1]
    assert (await world.open(execution_id="mine")) is execution
    guest = await world.guest(held(execution))
    events: list[Any] = []

    async def follow() -> None:
        async with execution.attach({1: 4}) as stream:
            events.extend([event async for event in stream])

    following = asyncio.create_task(follow())
    reader = await follows(guest, execution, {"1": 4, "2": 0})
    writes(guest, execution, 4, b"more", reader=reader)
    ends(guest, execution, reader, bytes_total={"1": 8, "2": 0})
    await soon(following)
    started, output, finished = events
    assert isinstance(started, Started)
    assert (started.offsets[1], started.timeout_s, started.created_at) == (4, 7, execution.created_at)
    assert isinstance(output, Output)
    assert output.data == b"more"
    assert finished.verdict is Verdict.EXITED
    assert world.metrics.value("enclaved_executions_adopted_total") == 1
    assert world.metrics.value("enclaved_executions_active") == 1  # the earlier daemon never heard of its end
    world.executions.settle()
    assert world.ledger.rows["mine"].finished == finished


async def test_one_that_ended_meanwhile_has_its_true_end(world: World) -> None:
    execution = await killed(world)
    report = {"type": "finished", "execution": execution.handle.name, "exit_code": 3, "attested": True}
    await world.guest(held(execution, "ended"), report)
    assert (await soon(execution.ended)).exit_code == 3


async def test_one_that_is_taken_up_after_its_guest_came_back_has_its_true_end_too(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    await guest.hear_of("run")
    row = world.ledger.rows["mine"]
    await world.kill()
    world.restart()
    await world.link.listen()
    report = {"type": "finished", "execution": execution.handle.name, "exit_code": 3}
    guest = await world.guest(held(execution, "ended"), report)
    adopted = world.executions.adopt(world.record, row)
    assert (await soon(adopted.ended)).exit_code == 3
    await guest.silence()


async def test_one_that_the_guest_never_got_is_told_of_and_not_run(world: World) -> None:
    execution = await killed(world)
    guest = await world.guest()
    finished = await soon(execution.ended)
    assert finished.verdict is Verdict.INTERNAL_ERROR
    assert "whether it ran is not known" in finished.message
    await guest.silence()
    async with execution.attach() as events:
        assert [type(event) for event in await soon(rest(events))] == [Started, Finished]
    assert (await soon(world.executions.wait("mine"))).finished == finished


async def test_one_whose_sandbox_is_gone_is_lost(world: World) -> None:
    execution = await killed(world)
    world.link.fail(SandboxLost("box", "its container ended"))
    assert (await soon(execution.ended)).verdict is Verdict.SANDBOX_LOST


async def test_one_whose_sandbox_was_stopped_is_lost(world: World) -> None:
    await world.guest()
    await world.open(execution_id="mine")
    row = world.ledger.rows["mine"]
    await world.kill()
    world.restart()
    link, world.record.link = world.link, None
    adopted = world.executions.adopt(world.record, row)
    assert (await soon(adopted.ended)).verdict is Verdict.SANDBOX_LOST
    world.record.link = link


async def test_one_that_had_ended_is_kept_with_its_end_and_its_output(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    ends(guest, execution, exit_code=5)
    finished = await soon(execution.ended)
    await again(world)
    adopted = world.executions.get("mine")
    assert adopted.info().finished == finished
    assert world.executions.active == 0
    guest = await world.guest(held(adopted, "ended"))

    async def follow() -> list[Any]:
        async with adopted.attach() as events:
            return await rest(events)

    following = asyncio.create_task(follow())
    reader = await follows(guest, adopted, {"1": 0, "2": 0})
    writes(guest, adopted, 0, b"kept", reader=reader)
    guest.say("end", execution=adopted.handle.name, reader=reader)
    events = await soon(following)
    assert [type(event) for event in events] == [Started, Output, Finished]
    assert events[-1] == finished


async def test_the_output_of_one_that_had_ended_may_be_gone(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    ends(guest, execution, bytes_total={"1": 7, "2": 0})
    await soon(execution.ended)
    await again(world)
    await world.guest()
    adopted = world.executions.get("mine")
    result = await soon(adopted.collect())
    assert (result.stdout, result.finished) == (b"", adopted.finished)
    assert [(notice.kind, notice.length_bytes) for notice in result.notices] == [(NoticeKind.GAP, 7)]


async def test_a_limit_of_processes_that_was_met_while_there_was_no_daemon_has_its_consequence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "PIDS_LOOK_EVERY_S", 0.001)
    object.__setattr__(world.record.spec, "kill_at_pids_limit", True)
    try:
        execution = await killed(world)
        guest = await world.guest(held(execution))
        world.meters.found = Counters(0, 3)
        await guest.hear_of("cancel")
        ends(guest, execution, exit_code=None, signal=9, cause="cancel")
        assert (await soon(execution.ended)).verdict is Verdict.PIDS_LIMIT
        await until(lambda: not world.executions._counting._pids_seen)
    finally:
        object.__setattr__(world.record.spec, "kill_at_pids_limit", False)


async def test_its_grace_for_clients_begins_anew(world: World) -> None:
    execution = await killed(world, detach_grace_s=0.01)
    await until(lambda: execution.cancelled_by != "")
    guest = await world.guest(held(execution))
    await guest.hear_of("cancel")
    assert "detach grace" in execution.cancelled_by


async def test_a_detached_one_needs_no_client(world: World) -> None:
    execution = await killed(world, detach=True, detach_grace_s=0.0)
    guest = await world.guest(held(execution))
    await guest.silence()
    assert execution.cancelled_by == ""


async def test_who_cancelled_it_is_known_to_the_next_daemon(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    execution.cancel("a caller")
    await guest.hear_of("cancel")
    await again(world)
    adopted = world.executions.get("mine")
    guest = await world.guest(held(adopted))
    ends(guest, adopted, exit_code=None, signal=9, cause="cancel")
    assert (await soon(adopted.ended)).cancelled_by == "a caller"


async def test_who_acknowledges_by_itself_still_does(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    await execution.acknowledge({1: 0})
    await guest.hear_of("run")
    await again(world)
    assert world.executions.get("mine").explicit_acknowledgements


async def test_counters_are_compared_with_those_of_its_start(world: World) -> None:
    world.meters.found = Counters(4, 0)
    execution = await killed(world)
    world.meters.found = Counters(5, 0)
    guest = await world.guest(held(execution))
    ends(guest, execution, exit_code=None, signal=9)
    finished = await soon(execution.ended)
    assert finished.verdict is Verdict.OUT_OF_MEMORY
    assert finished.limits_hit[0].count == 1


async def test_input_goes_on_where_the_guest_stands(world: World) -> None:
    execution = await killed(world, stdin=True)
    writing = asyncio.create_task(execution.write_stdin(b"34567", 3))  # before the guest is there
    guest = await world.guest(held(execution, stdin_offset=5))
    frames = [await guest.hear_of("stdin") for _ in range(2)]
    await soon(writing)
    assert [(header["offset"], data) for header, data in frames] == [(5, b""), (5, b"567")]
    guest.say("stdin_taken", execution=execution.handle.name, offset=2)
    await soon(execution.write_stdin(b"8"))
    assert (await guest.hear_of("stdin"))[1] == b"8"
    with pytest.raises(InvalidRequest, match="the next byte wanted is 9"):
        await execution.write_stdin(b"x", 10)


async def test_the_end_of_the_input_is_known_to_the_next_daemon(world: World) -> None:
    execution = await killed(world, stdin=True)
    await world.guest(held(execution, stdin_offset=5, stdin_ended=True))
    with pytest.raises(InvalidRequest, match="end of the input"):
        await soon(execution.write_stdin(b"x"))


async def test_a_guest_that_holds_a_full_window_of_input_gets_no_more_until_it_is_taken(world: World) -> None:
    execution = await killed(world, stdin=True)
    guest = await world.guest(held(execution, stdin_offset=STDIN_WINDOW_BYTES))
    assert (await guest.hear_of("stdin"))[1] == b""
    await guest.hear_of("watch_input")
    writing = asyncio.create_task(execution.write_stdin(b"x"))
    await guest.silence()
    guest.say("stdin_taken", execution=execution.handle.name, offset=STDIN_WINDOW_BYTES)
    assert (await guest.hear_of("stdin"))[1] == b"x"
    await soon(writing)


async def test_what_runs_and_is_written_down_nowhere_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STRANGERS_GRACE_S", 0.0)
    execution = await killed(world)
    guest = await world.guest(
        held(execution),
        {"type": "holds", "execution": "stranger:1", "state": "running"},
        {"type": "holds", "execution": "old:1", "state": "ended"},
    )
    assert world.link.end_strangers() == 1
    header, _ = await guest.hear_of("signal")
    assert (header["execution"], header["number"]) == ("stranger:1", 15)
    header, _ = await guest.hear_of("cancel")
    assert header["execution"] == "stranger:1"
    await guest.silence()


async def test_pages_go_on_across_the_restart(world: World) -> None:
    await world.guest()
    ids = [(await world.open()).id for _ in range(3)]
    page = world.executions.list(page_size=1)
    await again(world)
    rest_of_it = world.executions.list(page_size=10, page_token=page.next_page_token)
    assert [execution.id for execution in (*page.executions, *rest_of_it.executions)] == ids


async def test_a_cancel_that_did_not_reach_the_guest_is_sent_by_the_next_daemon(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    await guest.hear_of("run")
    await guest.leave()
    await soon(world.link.wait_away())
    execution.cancel("a caller")
    await again(world)
    guest = await world.guest(held(world.executions.get("mine")))
    await guest.hear_of("cancel")


async def test_a_kill_at_the_limit_of_processes_stays_one(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    execution.cancel_at_pids_limit()
    await guest.hear_of("cancel")
    await again(world)
    adopted = world.executions.get("mine")
    guest = await world.guest(held(adopted))
    ends(guest, adopted, exit_code=None, signal=9, cause="cancel")
    assert (await soon(adopted.ended)).verdict is Verdict.PIDS_LIMIT
