"""The same id never runs twice, also when nothing else is kept of it any more."""

from __future__ import annotations

import pytest

from enclaved.core import retention, tombstones
from enclaved.core.execution import Execution
from enclaved.core.execution_rows import ExecutionRow, ExecutionText
from enclaved.core.state.rows import encode_as
from enclaved.errors import InvalidRequest
from enclaved.model import Finished, Notice, NoticeKind, Started, ToolCall
from tests.unit.agent.scripted import FakeGuest
from tests.unit.core.scripted import World, ends, rest, soon, until

WROTE = {"bytes_total": {"1": 4, "2": 2}}


def keep(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many records of ended executions are kept, whatever they wrote."""
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", count)
    monkeypatch.setattr(retention, "RECORDS_MOST", count)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records go at once."""
    keep(monkeypatch, 0)


async def over(world: World, guest: FakeGuest, name: str = "mine", code: int = 3) -> Execution:
    """One that has ended, and of which no record is left."""
    execution = await world.open(execution_id=name)
    await guest.hear_of("run")
    ends(guest, execution, exit_code=code, **WROTE)
    await soon(execution.ended)
    await until(lambda: name not in world.executions._by_id)
    return execution


async def test_an_id_whose_record_went_is_answered_with_its_end_and_never_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await world.guest()
    old = await over(world, guest)
    keep(monkeypatch, 8)
    again = await world.open(execution_id="mine")
    assert again is await world.open(execution_id="mine")
    async with again.attach() as events:
        told = await soon(rest(events))
    assert [type(event) for event in told] == [Started, Notice, Notice, Finished]
    gaps = [(event.kind, event.channel, event.length_bytes) for event in told if isinstance(event, Notice)]
    assert gaps == [(NoticeKind.GAP, 1, 4), (NoticeKind.GAP, 2, 2)]
    assert told[-1] == old.finished
    result = await soon(world.executions.run(ToolCall("box", "shell_executor", {"command": "x"}, execution_id="mine")))
    assert (result.finished, len(result.notices)) == (old.finished, 2)
    detached = ToolCall("box", "shell_executor", {"command": "x"}, execution_id="mine", detach=True)
    assert (await soon(world.executions.run(detached))).execution_id == "mine"
    assert (await world.executions.wait("mine")).finished == old.finished
    assert world.link.handles == {}, "it was sent"
    world.houses.records["other"] = world.record
    with pytest.raises(InvalidRequest, match="another sandbox"):
        await world.executions.open(ToolCall("other", "shell_executor", {"command": "x"}, execution_id="mine"))


def text_of(row: ExecutionRow) -> ExecutionText:
    finished = None if row.finished is None else encode_as(Finished, row.finished)
    return ExecutionText(row.id, row.sandbox_id, encode_as(ExecutionRow, row, leave_out=("finished",)), finished)


def test_whether_a_caller_chose_an_id_is_seen_without_reading_the_row() -> None:
    forged = ExecutionText("a", "box", '{"context":"\\"chosen\\":true"}', None)
    assert (forged.chosen, forged._replace(body='{"context":"x","chosen":true}').chosen) == (False, True)


async def test_it_does_not_run_again_after_the_daemon_was_killed_either(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await world.guest()
    old = await over(world, guest)
    await over(world, guest, "yours", 4)
    for kept in (0, 1, 8):
        monkeypatch.setattr("enclaved.core.executions.RECORDS_MOST", kept)
        keep(monkeypatch, kept)
        world.executions.settle()
        await world.kill()
        world.restart()
        texts = [text_of(row) for row in world.ledger.rows.values()]
        world.executions.take_up(world.record, texts, lambda text: world.ledger.rows[text.id])
        await world.link.listen()
        guest = await world.guest()
        assert (await world.open(execution_id="mine")).finished == old.finished
        assert world.link.handles == {}, "it was sent"


async def test_the_oldest_go_first_and_their_rows_with_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "TOMBSTONES_PER_SANDBOX", 2)
    guest = await world.guest()
    for name in ("one", "two", "three"):
        await over(world, guest, name)
    world.executions.settle()
    assert [*world.ledger.rows] == ["two", "three"]
    assert (await world.open(execution_id="one")).finished is None
    monkeypatch.setattr(tombstones, "TOMBSTONES_PER_SANDBOX", 9)
    monkeypatch.setattr(tombstones, "TOMBSTONES", 2)
    await over(world, guest, "four")
    world.executions.settle()
    assert [*world.ledger.rows] == ["three", "one", "four"]
    assert len(world.executions._tombstones) == 2


async def test_a_sandbox_takes_them_with_it(world: World) -> None:
    guest = await world.guest()
    await over(world, guest)
    late = await world.open(execution_id="late")
    world.record.forgotten()
    ends(guest, late)
    await soon(late.ended)
    world.executions.settle()
    assert world.ledger.rows == {}
    assert len(world.executions._tombstones) == 0


async def test_an_id_that_nobody_chose_leaves_nothing(world: World) -> None:
    guest = await world.guest()
    execution = await world.open()
    ends(guest, execution)
    await soon(execution.ended)
    world.executions.settle()
    assert world.ledger.rows == {}
    assert len(world.executions._tombstones) == 0


async def test_of_a_long_message_only_the_beginning_is_kept(world: World) -> None:
    guest = await world.guest()
    execution = await world.open(execution_id="mine")
    raised = {"type": "ValueError", "message": "x" * 4000}
    ends(guest, execution, exit_code=1, exception=raised)
    await soon(execution.ended)
    found = await world.open(execution_id="mine")
    assert found.finished is not None
    assert found.finished.exception is not None
    assert found.finished.exception.message == "x" * 256
