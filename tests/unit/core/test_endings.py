"""A deletion is written down first, answered at once, and done for certain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from enclaved.core import endings
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineRefused, EngineUnavailable, SandboxNotFound, Unavailable, WrongState
from enclaved.model import SandboxState, SandboxUpdate
from tests.unit.core.hall import Hall
from tests.unit.core.scripted import until


@pytest.fixture
async def hall(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hall]:
    """See `Hall`."""
    monkeypatch.setattr(endings, "RETRY_S", 0.01)
    made = Hall()
    yield made
    await made.close()


async def test_it_is_answered_at_once_and_written_down(hall: Hall) -> None:
    await hall.make("a")
    record = hall.sandboxes.record("a")
    async with record.lock:
        await hall.sandboxes.delete("a", wait=False)
        assert hall.written() == {"a": SandboxState.DELETING}
        await hall.sandboxes.delete("a", wait=False)  # once more changes nothing
        assert len(hall.runtime.containers) == 1
    await record.gone.wait()
    assert (hall.written(), hall.runtime.containers, hall.boot.uids) == ({}, {}, set())
    with pytest.raises(SandboxNotFound):
        await hall.sandboxes.delete("a", wait=False)


@pytest.mark.parametrize("error", [EngineUnavailable("docker", "it sleeps"), EngineRefused("remove", "it is busy")])
async def test_it_is_tried_until_it_is_done(hall: Hall, error: Exception) -> None:
    await hall.make("a")
    record = hall.sandboxes.record("a")
    hall.runtime.failures += [error] * 3
    await hall.sandboxes.delete("a", wait=False)
    async with asyncio.timeout(20):
        await record.gone.wait()
    assert hall.runtime.containers == {}


async def test_whoever_waits_hears_what_is_in_the_way_and_hurries_it_by_asking_again(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "RETRY_S", 3600.0)
    await hall.make("a")
    hall.runtime.failures += [EngineUnavailable("docker", "it sleeps")] * 2
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await hall.sandboxes.delete("a")
        assert hall.sandboxes.get("a").state is SandboxState.DELETING
    await hall.sandboxes.delete("a")
    assert hall.runtime.containers == {}


async def test_what_is_being_deleted_can_be_neither_used_nor_changed(hall: Hall) -> None:
    await hall.make("a")
    record = hall.sandboxes.record("a")
    async with record.lock:
        await hall.sandboxes.delete("a", wait=False)
        with pytest.raises(WrongState, match="create another one"):
            record.running_link()
        with pytest.raises(WrongState):
            await hall.sandboxes._updating.update(record, SandboxUpdate(ttl_s=60))
        with pytest.raises(WrongState):
            await hall.sandboxes._switching.start(record)
        await hall.sandboxes._stop(record)
        hall.sandboxes.lose(record, "it fell")
        hall.sandboxes.seen(record, True)
        assert record.state is SandboxState.DELETING
    await record.gone.wait()


async def test_ends_are_counted_once_by_their_cause(hall: Hall) -> None:
    await hall.make("asked", "lost", "old")
    hall.sandboxes.lose(hall.sandboxes.record("lost"), "it fell")
    hall.sandboxes._endings._expire(hall.sandboxes.record("old"))
    for name in ("asked", "lost"):
        await hall.sandboxes.delete(name)
    hall.boot.failure = EngineRefused("create a container", "no")
    with pytest.raises(EngineRefused):
        await hall.make("never")
    counted = {cause: hall.metrics.value("enclaved_sandboxes_ended_total", cause=cause) for cause in ("request", "ttl")}
    assert counted == {"request": 1, "ttl": 1}
    assert hall.metrics.value("enclaved_sandboxes_ended_total", cause="engine") == 1
    assert hall.metrics.value("enclaved_sandboxes_ended_total", cause="daemon") == 0


async def test_many_deletions_do_not_flood_the_engine(hall: Hall) -> None:
    names = [f"box-{number}" for number in range(30)]
    await hall.make(*names)
    at_once = most = 0
    down = hall.boot.down

    async def slow_down(record: SandboxRecord) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        await down(record)
        at_once -= 1

    hall.boot.down = slow_down  # type: ignore[method-assign]
    await asyncio.gather(*(hall.sandboxes.delete(name) for name in names))
    assert most == endings.REMOVALS_AT_ONCE
    assert hall.runtime.containers == {}


async def test_a_deletion_goes_on_also_after_what_nobody_expects(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    await hall.make("a")
    hall.runtime.failures.append(RuntimeError("can't start new thread"))
    with pytest.raises(Unavailable, match="'a' could not be removed; it will be tried again"):
        await hall.sandboxes.delete("a")
    await until(lambda: hall.sandboxes.known("a") is None)
    assert hall.runtime.containers == {}
    assert "can't start new thread" in caplog.text


async def test_the_container_of_a_lost_sandbox_goes_as_soon_as_the_engine_does_not_refuse(hall: Hall) -> None:
    await hall.make("a")
    hall.runtime.failures.append(EngineRefused("remove a container", "device or resource busy"))
    hall.sandboxes.lose(hall.sandboxes.record("a"), "it fell")
    await until(lambda: not hall.runtime.containers)
