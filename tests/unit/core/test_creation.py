"""The same request is the same sandbox, however often it is sent and whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from enclaved.core import creation
from enclaved.core.record import SandboxRecord
from enclaved.core.state import chronicle
from enclaved.errors import (
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    NoSpace,
    RequestEnded,
    SandboxExists,
    SandboxLost,
    SandboxNotFound,
)
from enclaved.model import EMPTY, Sandbox, SandboxRequest, SandboxState
from tests.unit.core.hall import Hall


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    """See `Hall`."""
    made = Hall()
    yield made
    await made.close()


class Slow:
    """Makes creations wait in the engine."""

    def __init__(self, hall: Hall) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.times = 0
        self._up = hall.boot.up
        hall.boot.up = self.up  # type: ignore[method-assign]

    async def up(self, record: SandboxRecord, remaining_ttl_s: float) -> None:
        self.times += 1
        self.begun.set()
        await self.go.wait()
        await self._up(record, remaining_ttl_s)


def create(hall: Hall, request: SandboxRequest | None = None, *, request_id: str = "4711", **given: Any) -> Any:
    return hall.sandboxes.create(request or SandboxRequest(), request_id=request_id, **given)


async def gone(hall: Hall) -> None:
    """Waits until nothing is left."""
    for record in list(hall.sandboxes.records):
        await record.gone.wait()


async def test_the_same_request_is_the_same_sandbox(hall: Hall) -> None:
    labels = {"b": "1", "a": "2"}
    first = await create(hall, labels=labels)
    again = await create(hall, labels=dict(reversed(labels.items())))
    assert again == first
    assert len(hall.runtime.containers) == 1
    assert hall.metrics.value("enclaved_sandboxes_created_total", outcome="ok") == 1
    assert (await create(hall, request_id="4712")).id != first.id
    assert (await hall.sandboxes.create(SandboxRequest())).id != (await hall.sandboxes.create(SandboxRequest())).id


async def test_a_second_one_waits_for_the_first(hall: Hall) -> None:
    slow = Slow(hall)
    calls = [asyncio.create_task(create(hall)) for _ in range(5)]
    await slow.begun.wait()
    slow.go.set()
    found: list[Sandbox] = await asyncio.gather(*calls)
    assert len({sandbox.id for sandbox in found}) == slow.times == 1


async def test_who_leaves_leaves_it_to_the_others_and_the_last_ends_it(hall: Hall) -> None:
    slow = Slow(hall)
    first, second = (asyncio.create_task(create(hall)) for _ in range(2))
    await slow.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(hall.sandboxes.records) == 1
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (len(hall.sandboxes.records), hall.written(), hall.boot.uids) == (0, {}, set())


async def test_one_that_comes_while_the_first_is_undone_makes_another(hall: Hall) -> None:
    undone, go = asyncio.Event(), asyncio.Event()

    async def hesitate(record: SandboxRecord, remaining_ttl_s: float) -> None:
        try:
            undone.set()
            await asyncio.Event().wait()
        finally:
            await go.wait()

    up, hall.boot.up = hall.boot.up, hesitate  # type: ignore[method-assign]
    first = asyncio.create_task(create(hall))
    await undone.wait()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(create(hall))
    await asyncio.sleep(0)
    hall.boot.up = up  # type: ignore[method-assign]
    go.set()
    assert (await second).state is SandboxState.RUNNING
    assert len(hall.runtime.containers) == 1
    assert first.cancelled()


async def test_a_failure_is_for_all_who_wait_and_then_forgotten(hall: Hall) -> None:
    hall.boot.failure = EngineRefused("create a container", "no")
    results = await asyncio.gather(create(hall), create(hall), return_exceptions=True)
    assert [type(result) for result in results] == [EngineRefused, EngineRefused]
    hall.boot.failure = None
    assert (await create(hall)).state is SandboxState.RUNNING


async def test_what_is_left_of_a_failure_does_not_keep_the_request_from_being_tried_again(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = hall.boot.up

    async def half_up(record: SandboxRecord, remaining_ttl_s: float) -> None:
        await up(record, remaining_ttl_s)
        raise EngineUnavailable("docker", "it sleeps")

    hall.boot.up = half_up  # type: ignore[method-assign]
    hall.runtime.failures += [EngineUnavailable("docker", "it sleeps")]
    with pytest.raises(EngineUnavailable):
        await create(hall)
    (left,) = hall.sandboxes.records
    assert left.state is SandboxState.DELETING
    hall.boot.up = up  # type: ignore[method-assign]
    made = await create(hall)
    assert made.id != left.id
    assert (await create(hall)).id == made.id
    await hall.sandboxes._endings._removals[left].wait()
    assert set(hall.runtime.containers) == {f"container of {made.id}"}
    assert (await create(hall)).id == made.id


@pytest.mark.parametrize(
    ("request_", "given"),
    [
        (SandboxRequest(pids_limit=64), {}),
        (SandboxRequest(), {"sandbox_id": "other"}),
        (SandboxRequest(), {"labels": {"a": "b"}}),
    ],
)
async def test_another_request_under_the_same_id_is_refused(
    hall: Hall, request_: SandboxRequest, given: dict[str, Any]
) -> None:
    made = await create(hall)
    for when in ("alive", "gone"):
        with pytest.raises(InvalidRequest, match="another request") as caught:
            await create(hall, request_, **given)
        assert [each.reason for each in caught.value.violations] == ["REQUEST_ID_REUSED"]
        if when == "alive":
            await hall.sandboxes.delete(made.id)


async def test_a_request_whose_sandbox_is_gone_makes_no_other_for_a_while(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await create(hall)
    await hall.sandboxes.delete(made.id)
    with pytest.raises(RequestEnded, match=made.id):
        await create(hall)
    monkeypatch.setattr(chronicle, "REQUEST_KEPT_S", -timedelta(seconds=1).total_seconds())
    assert (await create(hall)).id != made.id


async def test_a_sandbox_that_is_shown_again_is_shown_as_it_is(hall: Hall) -> None:
    made = await create(hall)
    await hall.sandboxes.stop(made.id)
    assert (await create(hall)).state is SandboxState.STOPPED
    hall.sandboxes.lose(hall.sandboxes.record(made.id), "it fell")


@pytest.mark.parametrize("request_id", ["a b", "-", "x" * 65, "ä"])
async def test_what_is_no_id_of_a_request_is_refused(hall: Hall, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        await create(hall, request_id=request_id)


async def test_a_full_disk_makes_nothing(hall: Hall) -> None:
    database = hall.state._database
    pages = database._number("PRAGMA page_count")
    database._connection.execute(f"PRAGMA max_page_count = {pages}")

    async def many() -> None:
        for number in range(1000):
            await create(hall, request_id=f"{number}")

    with pytest.raises(NoSpace):
        await many()
    assert set(hall.runtime.containers) == {f"container of {record.id}" for record in hall.sandboxes.records}
    database._connection.execute("PRAGMA max_page_count = 1000000")


async def test_a_sandbox_is_deleted_while_it_is_made(hall: Hall) -> None:
    slow = Slow(hall)
    creating = asyncio.create_task(create(hall, sandbox_id="box"))
    await slow.begun.wait()
    await hall.sandboxes.delete("box")
    with pytest.raises(SandboxLost, match="deleted while it was being made"):
        await creating
    with pytest.raises(SandboxNotFound):
        hall.sandboxes.get("box")
    assert (hall.written(), hall.boot.uids) == ({}, set())
    slow.go.set()
    assert (await create(hall, sandbox_id="box")).state is SandboxState.RUNNING  # it was never there to be used


async def test_an_id_is_free_as_soon_as_its_deletion_is_done(hall: Hall) -> None:
    await hall.make("box")
    go = asyncio.Event()
    down = hall.boot.down

    async def slow_down(record: SandboxRecord) -> None:
        await go.wait()
        await down(record)

    hall.boot.down = slow_down  # type: ignore[method-assign]
    await hall.sandboxes.delete("box", wait=False)
    creating = asyncio.create_task(hall.make("box"))
    await asyncio.sleep(0)
    assert hall.sandboxes.get("box").state is SandboxState.DELETING
    go.set()
    await creating
    assert hall.sandboxes.get("box").state is SandboxState.RUNNING


async def test_an_id_whose_deletion_takes_long_is_taken(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "GONE_WITHIN_S", 0.01)
    await hall.make("box")
    async with hall.sandboxes.record("box").lock:
        await hall.sandboxes.delete("box", wait=False)
        with pytest.raises(SandboxExists, match="still being deleted"):
            await hall.make("box")
    await gone(hall)


async def test_those_on_their_way_out_leave_room_for_others_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(creation, "DELETIONS_FREE", 1)
    hall = Hall(sandboxes_max=1)
    await hall.make("a")
    async with hall.sandboxes.record("a").lock:
        await hall.sandboxes.delete("a", wait=False)
        await hall.make("b")
        async with hall.sandboxes.record("b").lock:
            await hall.sandboxes.delete("b", wait=False)
            with pytest.raises(LimitReached):
                await hall.make("c")
    await gone(hall)
    await hall.close()


def test_every_field_of_a_request_tells_it_from_others() -> None:
    wish = creation.Wish(SandboxRequest(), "box", EMPTY, "", "4711")
    others = [
        replace(wish, request=replace(wish.request, env_vars={"A": "b"})),
        replace(wish, request=replace(wish.request, documented_defaults=frozenset({"network"}))),
        replace(wish, request=replace(wish.request, tools={"python_executor": {"timeout": 5}})),
        replace(wish, pool_id="pool"),
    ]
    assert len({wish.digest, *(other.digest for other in others)}) == 5
    assert replace(wish, request_id="4712").digest == wish.digest
