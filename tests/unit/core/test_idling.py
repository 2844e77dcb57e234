"""Sandboxes that nobody uses are removed after their idle timeout, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from enclaved.core import idling
from enclaved.core.idling import Idling
from enclaved.core.policy import PolicyLimits
from enclaved.core.record import SandboxRecord
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import SandboxRequest, SandboxState, SandboxUpdate
from tests.unit.core.hall import Hall


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    """See `Hall`."""
    made = Hall()
    yield made
    await made.close()


async def make(hall: Hall, idle_timeout_s: float | None, pool_id: str = "") -> SandboxRecord:
    request = SandboxRequest(idle_timeout_s=idle_timeout_s)
    return hall.sandboxes.record((await hall.sandboxes.create(request, pool_id=pool_id)).id)


def pass_s(hall: Hall, record: SandboxRecord, seconds: float) -> None:
    """Makes so much time pass for a sandbox, as its timer sees it."""
    record.used -= seconds
    hall.sandboxes._idling._look(record)


async def test_one_that_nobody_uses_is_removed(hall: Hall) -> None:
    record = await make(hall, 60)
    pass_s(hall, record, 59)
    assert record.state is SandboxState.RUNNING
    pass_s(hall, record, 2)
    assert (record.state, record.state_reason) == (SandboxState.DELETING, "nobody used it for its idle timeout")
    async with asyncio.timeout(20):
        await record.gone.wait()
    assert hall.metrics.value("enclaved_sandboxes_ended_total", cause="idle") == 1


async def test_its_timer_ends_it_by_itself(hall: Hall) -> None:
    record = await make(hall, 1)
    assert record.idle_timer is not None
    record.used -= 0.99
    hall.sandboxes._idling.watch(record)
    async with asyncio.timeout(20):
        await record.gone.wait()


async def test_one_that_is_used_stays_however_long_that_takes(hall: Hall) -> None:
    record = await make(hall, 60)
    record.active_executions = 1
    for _ in range(5):
        pass_s(hall, record, 100)
    record.active_executions = 0
    record.touch()
    pass_s(hall, record, 59)
    assert record.state is SandboxState.RUNNING
    pass_s(hall, record, 2)
    assert record.state is SandboxState.DELETING


async def test_files_and_contexts_count_as_use_and_looks_do_not(hall: Hall) -> None:
    record = await make(hall, 60)
    record.used -= 50
    before = record.used
    hall.sandboxes.get(record.id)
    hall.sandboxes.list()
    await hall.sandboxes.update(record.id, SandboxUpdate(labels={"a": "b"}))
    assert record.used == before
    await hall.sandboxes.awake(record.id)
    assert record.used > before
    assert hall.sandboxes.get(record.id).used_at == record.used_at


@pytest.mark.parametrize(("idle_timeout_s", "pool_id"), [(0, ""), (None, ""), (60, "pool")])
async def test_one_without_an_idle_timeout_and_one_of_a_pool_stay(
    hall: Hall, idle_timeout_s: float | None, pool_id: str
) -> None:
    record = await make(hall, idle_timeout_s, pool_id)
    assert record.idle_timer is None
    if pool_id:
        await hall.sandboxes.hand_over(record, SandboxUpdate(idle_timeout_s=60.0), ("", ""))
        assert record.idle_timer is not None
        record.pool_id = pool_id
        pass_s(hall, record, 1000)
        assert record.state is SandboxState.RUNNING


async def test_a_stop_does_not_stop_the_clock(hall: Hall) -> None:
    record = await make(hall, 60)
    await hall.sandboxes.stop(record.id)
    pass_s(hall, record, 61)
    assert record.state is SandboxState.DELETING


async def test_the_idle_timeout_is_changed_while_it_lives(hall: Hall) -> None:
    record = await make(hall, None)
    assert (await hall.sandboxes.update(record.id, SandboxUpdate(idle_timeout_s=60))).spec.idle_timeout_s == 60
    assert record.idle_timer is not None
    assert (await hall.sandboxes.update(record.id, SandboxUpdate(idle_timeout_s=0))).spec.idle_timeout_s == 0
    assert record.idle_timer is None
    for wrong in (-1, 0.5, float("nan"), 1e12):
        with pytest.raises(InvalidRequest, match="idle_timeout_s"):
            await hall.sandboxes.update(record.id, SandboxUpdate(idle_timeout_s=wrong))


async def test_policy_may_want_one_and_have_a_longest() -> None:
    hall = Hall(idle_timeout_max_s=600.0)
    assert (await make(hall, None)).spec.idle_timeout_s == 600
    record = await make(hall, 60)
    for wrong in (601, 0):
        with pytest.raises(PolicyDenied, match="600"):
            await hall.sandboxes.update(record.id, SandboxUpdate(idle_timeout_s=wrong))
        with pytest.raises(PolicyDenied, match="600"):
            await make(hall, wrong)
    await hall.close()
    hall = Hall(idle_timeout_default_s=60.0)
    assert (await make(hall, None)).spec.idle_timeout_s == 60
    assert (await make(hall, 0)).spec.idle_timeout_s == 0
    await hall.close()


@pytest.mark.parametrize("limits", [(-1.0, 0.0), (0.0, -1.0), (61.0, 60.0), (float("inf"), 0.0)])
def test_limits_that_contradict_each_other_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="idle_timeout"):
        PolicyLimits(idle_timeout_default_s=limits[0], idle_timeout_max_s=limits[1])


async def test_use_is_written_down_now_and_then_and_survives_a_restart(hall: Hall) -> None:
    record = await make(hall, 60)

    def written() -> float:
        (row,) = hall.state.sandboxes.load()
        return row.used_monotonic_s

    first = written()
    record.touch()
    assert written() == first  # a moment ago
    record.used_noted -= idling.NOTE_EVERY_S
    record.touch()
    assert written() == record.used > first
    (row,) = hall.state.sandboxes.load()
    ended: list[SandboxRecord] = []
    taken = SandboxRecord.of(replace(row, used_monotonic_s=row.used_monotonic_s - 1000), hall.metrics)
    assert taken.used_at is not None
    next_daemon = Idling(hall.state.sandboxes, ended.append)
    next_daemon.take_up(taken)
    assert taken.idle_timer is not None
    left_s = taken.idle_timer.when() - asyncio.get_running_loop().time()
    assert 9 < left_s <= idling.RETURN_GRACE_S  # its clients have a moment to come back
    taken.idle_timer.cancel()
    next_daemon._look(taken)
    assert ended == [taken]
