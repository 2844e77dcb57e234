"""Every change of sandboxes is told once, in order, to whoever follows, also by the next daemon."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.core import changes
from enclaved.core.changes import Changes
from enclaved.core.state import chronicle
from enclaved.errors import InvalidRequest, LimitReached, RevisionGone, ShuttingDown
from enclaved.model import (
    Bookmark,
    Cause,
    SandboxEvent,
    SandboxEventKind,
    SandboxFilter,
    SandboxRequest,
    SandboxState,
    SandboxUpdate,
)
from tests.unit.core.hall import Hall

Events = AsyncGenerator[SandboxEvent | Bookmark]


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    """See `Hall`."""
    made = Hall()
    yield made
    await made.close()


async def told(events: Events, count: int) -> list[SandboxEvent]:
    """The next changes, without bookmarks."""
    found: list[SandboxEvent] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            event = await anext(events)
            if isinstance(event, SandboxEvent):
                found.append(event)
    return found


def brief(events: list[SandboxEvent]) -> list[tuple[str, str, str]]:
    return [(event.sandbox.id, event.kind.value, event.sandbox.state.value) for event in events]


async def test_a_whole_life_is_told_in_order(hall: Hall) -> None:
    async with aclosing(hall.sandboxes.watch()) as events:
        assert isinstance(await anext(events), Bookmark)
        await hall.make("a")
        await hall.sandboxes.update("a", SandboxUpdate(labels={"team": "red"}))
        await hall.sandboxes.stop("a")
        await hall.sandboxes.start("a")
        hall.sandboxes.lose(hall.sandboxes.record("a"), "it fell")
        await hall.sandboxes.delete("a")
        found = await told(events, 10)
    assert brief(found) == [
        ("a", "created", "initializing"),
        ("a", "changed", "running"),
        ("a", "changed", "running"),
        ("a", "changed", "stopping"),
        ("a", "changed", "stopped"),
        ("a", "changed", "initializing"),
        ("a", "changed", "running"),
        ("a", "changed", "error"),
        ("a", "changed", "deleting"),
        ("a", "deleted", "deleting"),
    ]
    revisions = [event.revision for event in found]
    assert revisions == sorted(set(revisions))
    assert [event.sandbox.revision for event in found] == revisions
    assert found[7].cause is Cause.ENGINE
    assert found[2].sandbox.labels == {"team": "red"}


async def test_a_list_and_a_watch_from_there_miss_and_repeat_nothing(hall: Hall) -> None:
    await hall.make("a", "b", "c")
    first = hall.sandboxes.list(page_size=2)
    await hall.sandboxes.delete("b")
    second = hall.sandboxes.list(page_size=2, page_token=first.next_page_token)
    await hall.make("d")
    assert first.revision == second.revision
    known = {sandbox.id: sandbox.state for page in (first, second) for sandbox in page.sandboxes}
    async with aclosing(hall.sandboxes.watch(first.revision)) as events:
        for event in await told(events, 4):
            known[event.sandbox.id] = event.sandbox.state
            if event.kind is SandboxEventKind.DELETED:
                del known[event.sandbox.id]
    assert known == {sandbox.id: sandbox.state for sandbox in hall.sandboxes.list().sandboxes}


async def test_only_what_concerns_a_filter_is_told_also_that_something_left_it(hall: Hall) -> None:
    async with aclosing(hall.sandboxes.watch(wanted=SandboxFilter({"team": "red"}))) as events:
        await anext(events)
        await hall.make("a", team="blue")
        await hall.make("b", team="red")
        await hall.sandboxes.update("b", SandboxUpdate(labels={"team": "blue"}))
        await hall.sandboxes.update("a", SandboxUpdate(labels={"team": "red"}))
        found = await told(events, 4)
    assert [(event.sandbox.id, dict(event.sandbox.labels)) for event in found] == [
        ("b", {"team": "red"}),
        ("b", {"team": "red"}),
        ("b", {"team": "blue"}),
        ("a", {"team": "red"}),
    ]
    running = SandboxFilter(states=frozenset({SandboxState.RUNNING}))
    async with aclosing(hall.sandboxes.watch(wanted=running)) as events:
        await anext(events)
        await hall.sandboxes.stop("a")
        (left,) = await told(events, 1)
    assert (left.sandbox.state, left.state_before) == (SandboxState.STOPPING, SandboxState.RUNNING)
    assert not running.shows(left.sandbox)


async def test_filters_by_age_and_tenant(hall: Hall) -> None:
    await hall.make("old", "young")
    young = hall.sandboxes.get("young")
    ids = [
        [sandbox.id for sandbox in hall.sandboxes.list(wanted=wanted).sandboxes]
        for wanted in (
            SandboxFilter(created_before=young.created_at),
            SandboxFilter(created_after=young.created_at - timedelta(microseconds=1)),
            SandboxFilter(tenant="default"),
            SandboxFilter(tenant="nobody"),
        )
    ]
    assert ids == [["old"], ["young"], ["old", "young"], []]


async def test_the_environment_of_sandboxes_is_not_told(hall: Hall) -> None:
    async with aclosing(hall.sandboxes.watch()) as events:
        await anext(events)
        await hall.sandboxes.create(SandboxRequest(env_vars={"SECRET": "x"}), sandbox_id="a")
        assert [dict(event.sandbox.spec.env_vars) for event in await told(events, 2)] == [{}, {}]
    assert hall.sandboxes.get("a").spec.env_vars == {"SECRET": "x"}


async def test_whoever_hears_nothing_hears_that(hall: Hall) -> None:
    revision = hall.sandboxes.list().revision
    async with aclosing(hall.sandboxes.watch(heartbeat_s=0.1)) as events:
        assert [await anext(events) for _ in range(3)] == [Bookmark(revision)] * 3
        assert hall.metrics.value("enclaved_sandbox_watches") == 1
    assert hall.metrics.value("enclaved_sandbox_watches") == 0


async def test_whoever_is_told_nothing_of_a_busy_daemon_hears_how_far_it_is(hall: Hall) -> None:
    await hall.make("a")
    others = SandboxFilter(labels={"team": "blue"})

    async def keep_changing() -> None:
        for number in itertools.count():
            await hall.sandboxes.update("a", SandboxUpdate(labels={"number": str(number)}))
            await asyncio.sleep(0)

    async with aclosing(hall.sandboxes.watch(0, others, heartbeat_s=0.1)) as events, asyncio.timeout(20):
        changing = asyncio.create_task(keep_changing())
        heard = [await anext(events) for _ in range(3)]
        changing.cancel()
    assert all(isinstance(one, Bookmark) for one in heard)
    assert heard[0].revision < heard[1].revision < heard[2].revision


async def test_the_next_daemon_goes_on_with_the_revisions(hall: Hall) -> None:
    await hall.make("a")
    before = hall.sandboxes.list().revision
    again = Changes(hall.state.sandboxes, hall.metrics)
    assert again.revision > before
    async with aclosing(again.follow(before)) as events:
        assert await anext(events) == Bookmark(before)
        again.note(hall.sandboxes.record("a"), Cause.DAEMON)
        (event,) = await told(events, 1)
    assert event.revision == again.revision
    async with aclosing(again.follow(heartbeat_s=0.1)) as events:
        assert await anext(events) == Bookmark(again.revision)


async def test_a_daemon_that_stops_ends_its_watches(hall: Hall) -> None:
    async with aclosing(hall.sandboxes.watch()) as events:
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        hall.sandboxes.end_watches()
        with pytest.raises(ShuttingDown):
            await waiting


@pytest.mark.parametrize("revision", [2**40, 500])
async def test_a_revision_that_was_never_given_out_is_refused(hall: Hall, revision: int) -> None:
    await hall.make("a")
    with pytest.raises(RevisionGone, match="list the sandboxes anew"):
        await anext(hall.sandboxes.watch(revision))


async def test_old_changes_are_dropped_and_whoever_is_too_slow_is_told(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chronicle, "CHANGES_KEPT", 20)
    monkeypatch.setattr(chronicle, "PRUNE_EVERY", 1)
    await hall.make("a")
    async with aclosing(hall.sandboxes.watch()) as events:
        await anext(events)
        for number in range(300):
            await hall.sandboxes.update("a", SandboxUpdate(labels={"number": str(number)}))
        with pytest.raises(RevisionGone):
            await anext(events)
    assert len(hall.state._database.load("SELECT revision FROM sandbox_changes", lambda values: values)) <= 21
    assert hall.metrics.value("enclaved_sandbox_watches") == 0


async def test_there_is_a_limit_to_watchers(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FOLLOWERS_MOST", 1)
    async with aclosing(hall.sandboxes.watch()) as events:
        await anext(events)
        with pytest.raises(LimitReached, match="watch"):
            await anext(hall.sandboxes.watch())
    async with aclosing(hall.sandboxes.watch()) as events:
        await anext(events)


@pytest.mark.parametrize(("revision", "heartbeat_s"), [(-1, 0), (0, 0.01), (0, 1e6), (0, float("nan"))])
async def test_what_cannot_be_watched_is_refused(hall: Hall, revision: int, heartbeat_s: float) -> None:
    with pytest.raises(InvalidRequest):
        await anext(hall.sandboxes.watch(revision, None, heartbeat_s))


async def test_on_a_full_disk_changes_are_told_when_there_is_room_again(hall: Hall) -> None:
    await hall.make("a", "b")
    database: Any = hall.state._database
    async with aclosing(hall.sandboxes.watch(heartbeat_s=0.1)) as events:
        await anext(events)
        database._connection.execute(f"PRAGMA max_page_count = {database._number('PRAGMA page_count')}")
        record = hall.sandboxes.record("a")
        while not database.owed:
            hall.sandboxes.seen(record, record.state is SandboxState.RUNNING)
        shown = hall.sandboxes.get("a")
        async with aclosing(hall.sandboxes.watch(hall.sandboxes.list().revision)) as others:
            assert isinstance(await anext(others), Bookmark)
        database._connection.execute("PRAGMA max_page_count = 1000000")
        await hall.sandboxes.delete("b")
        last = None
        async with asyncio.timeout(20):
            async for event in events:
                if isinstance(event, SandboxEvent) and event.sandbox.id == "a":
                    last = event.sandbox
                if isinstance(event, SandboxEvent) and event.kind is SandboxEventKind.DELETED:
                    break
    assert last is not None
    assert (last.state, last.revision) == (shown.state, shown.revision)


async def test_a_history_has_causes_and_an_end(hall: Hall) -> None:
    await hall.make("a")
    hall.sandboxes.seen(hall.sandboxes.record("a"), True)
    assert [(change.state, change.cause) for change in hall.sandboxes.history("a")] == [
        (SandboxState.INITIALIZING, Cause.REQUEST),
        (SandboxState.RUNNING, Cause.REQUEST),
        (SandboxState.PAUSED, Cause.ENGINE),
    ]
    for number in range(300):
        hall.sandboxes.seen(hall.sandboxes.record("a"), number % 2 == 1)
    history = hall.sandboxes.history("a")
    assert len(history) == 100
    (row,) = hall.state.sandboxes.load()
    assert row.history == history


ACTS = st.lists(st.sampled_from(["make", "stop", "start", "lose", "delete", "label", "list"]), max_size=25)


@settings(max_examples=25, deadline=None)
@given(acts=ACTS)
async def test_whatever_happens_a_list_and_its_changes_say_what_there_is(acts: list[str]) -> None:
    hall = Hall()
    hall.boot.failure = None
    page = hall.sandboxes.list()
    known: dict[str, Any] = {}
    made = 0
    for act in acts:
        ids = [record.id for record in hall.sandboxes.records]
        if act == "make":
            made += 1
            await hall.make(f"box-{made}")
        elif act == "list":
            page = hall.sandboxes.list()
            known = {sandbox.id: sandbox.state for sandbox in page.sandboxes}
        elif ids and act == "lose":
            hall.sandboxes.lose(hall.sandboxes.record(ids[0]), "it fell")
        elif ids and act == "label":
            await hall.sandboxes.update(ids[-1], SandboxUpdate(labels={"acts": str(len(acts))}))
        elif ids and act == "delete":
            await hall.sandboxes.delete(ids[0])
        elif ids and act == "stop":
            await hall.sandboxes.stop(ids[-1])
        elif ids and hall.sandboxes.get(ids[-1]).state is SandboxState.STOPPED:
            await hall.sandboxes.start(ids[-1])
    async with aclosing(hall.sandboxes.watch(page.revision, heartbeat_s=0.1)) as events:
        await anext(events)
        async for event in events:
            if isinstance(event, Bookmark):
                break
            known[event.sandbox.id] = event.sandbox.state
            if event.kind is SandboxEventKind.DELETED:
                del known[event.sandbox.id]
    assert known == {sandbox.id: sandbox.state for sandbox in hall.sandboxes.list().sandboxes}
    await hall.close()
