"""What somebody else does to containers, heard from the engine's events, or found out without them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from enclaved.core import outside as module
from enclaved.core import watching
from enclaved.core.outside import Outside
from enclaved.core.pausing import FROM_OUTSIDE
from enclaved.errors import EngineRefused, EngineUnavailable
from enclaved.model import Sandbox, SandboxState, SandboxUpdate, Verdict
from enclaved.runtime.base import ContainerChange, ContainerEvent
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.guest.laboratory import Box, Laboratory, first_output, laboratory, until

RESTARTED = "its container was restarted by somebody else: its programs and its files are gone"
REMOVED = "its container was removed by somebody else"


class Engine(SubprocessRuntime):
    """An engine whose events can be lost, and that somebody else uses as well."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[int] = []
        """From when on each stream was asked for."""
        self.deaf = False
        self.broken: list[Exception] = []
        """Each ends one stream as soon as something happens."""

    @asynccontextmanager
    async def events(self, since_ns: int = 0) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        self.opened.append(since_ns)
        async with super().events(since_ns) as events:
            yield self._told(events)

    async def _told(self, events: AsyncIterator[ContainerEvent]) -> AsyncIterator[ContainerEvent]:
        async for event in events:
            if self.broken:
                raise self.broken.pop()
            if not self.deaf:
                yield event

    def tell(self, container_id: str, change: ContainerChange) -> None:
        """Tells something, true or not."""
        self._tell(container_id, change)

    async def restart(self, container_id: str) -> None:
        """Starts a container anew, as an operator might."""
        container = self._containers[container_id]
        assert container.process is not None
        container.process.kill()
        await container.process.wait()
        self._tell(container_id, ContainerChange.STOPPED)
        with suppress(EngineRefused):  # the daemon was quicker, and removed it
            async with self.starting(container_id):
                self._tell(container_id, ContainerChange.RESTARTED)


class Place:
    """A laboratory whose engine somebody else uses too."""

    def __init__(self, lab: Laboratory, engine: Engine) -> None:
        self.lab, self.engine = lab, engine

    def follow(self) -> asyncio.Task[None]:
        """Begins to follow the engine's events."""
        lab = self.lab
        outside = Outside(
            runtime=self.engine,
            sandboxes=lab.sandboxes,
            boot=lab.sandboxes._boot,
            background=lab.background,
            metrics=lab.metrics,
        )
        return lab.background.spawn(outside.follow(), "follow")

    def interventions(self, what: str) -> float:
        return self.lab.metrics.value("enclaved_engine_interventions_total", what=what)

    async def enters(self, box: Box, state: SandboxState) -> Sandbox:
        """Waits until a sandbox is in a state."""
        await until(lambda: self.lab.sandboxes.get(box.id).state is state)
        return self.lab.sandboxes.get(box.id)

    async def listens(self, streams: int = 1) -> None:
        """Waits until so many streams of events were opened."""
        await until(lambda: len(self.engine.opened) >= streams)


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    engine = Engine()
    async with laboratory(engine) as lab:
        yield Place(lab, engine)


@pytest.fixture
async def box(place: Place) -> Box:
    return await place.lab.box()


def container_id(box: Box) -> str:
    assert box.record.container_id is not None
    return box.record.container_id


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
async def test_a_sandbox_whose_container_was_restarted_is_lost(place: Place, box: Box, told: bool) -> None:
    if told:
        place.follow()
        await place.listens()
    running = await box.open_shell("echo begun; sleep 600")
    await first_output(running)
    await place.engine.restart(container_id(box))
    finished = await running.ended
    assert finished.verdict is Verdict.SANDBOX_LOST
    lost = await place.enters(box, SandboxState.ERROR)
    if told:  # otherwise it may be seen while it does not run
        assert "restarted by somebody else" in finished.message
        assert lost.state_reason == RESTARTED
        assert place.interventions("restarted") == 1
    await until(lambda: place.engine._containers == {})


async def test_a_stopped_sandbox_whose_container_was_restarted_is_lost(place: Place) -> None:
    place.follow()
    await place.listens()
    box = await place.lab.box(remove_on_exit=False)
    await place.lab.sandboxes.stop(box.id)
    await place.engine.restart(container_id(box))
    assert (await place.enters(box, SandboxState.ERROR)).state_reason == RESTARTED


async def test_a_stopped_sandbox_whose_container_was_removed_is_lost(place: Place) -> None:
    place.follow()
    await place.listens()
    box = await place.lab.box(remove_on_exit=False)
    await place.lab.sandboxes.stop(box.id)
    await place.engine.remove(container_id(box))
    assert (await place.enters(box, SandboxState.ERROR)).state_reason == REMOVED
    assert place.interventions("removed") == 1


async def test_a_removal_that_nobody_told_is_noticed_all_the_same(place: Place, box: Box) -> None:
    place.engine.deaf = True
    place.follow()
    await place.listens()
    await place.engine.remove(container_id(box))
    assert (await place.enters(box, SandboxState.ERROR)).state_reason == REMOVED


async def test_a_pause_from_outside_is_seen_without_a_ping(
    place: Place, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PING_EVERY_S", 3600.0)
    place.follow()
    await place.listens()
    await place.engine.pause(container_id(box))
    assert (await place.enters(box, SandboxState.PAUSED)).state_reason == FROM_OUTSIDE
    await place.engine.unpause(container_id(box))
    assert (await place.enters(box, SandboxState.RUNNING)).state_reason == "its container was resumed from outside"
    assert (place.interventions("paused"), place.interventions("resumed")) == (1, 1)


async def test_what_we_do_ourselves_is_nobody_elses(place: Place, box: Box) -> None:
    place.follow()
    await place.listens()
    for _ in range(3):
        await place.lab.sandboxes.pause(box.id)
        await place.lab.sandboxes.resume(box.id)
        await place.lab.sandboxes.update(box.id, SandboxUpdate(pids_limit=77))
    other = await place.lab.box()
    await place.lab.sandboxes.delete(other.id)
    # What comes after all of that in the stream was seen: so was all of that.
    place.engine.tell(container_id(box), ContainerChange.RENAMED)
    await until(lambda: place.interventions("renamed") == 1)
    await until(lambda: not any(task.get_name().startswith(("look", "check")) for task in asyncio.all_tasks()))
    assert place.lab.sandboxes.get(box.id).state is SandboxState.RUNNING
    for what in ("paused", "resumed", "limits_changed", "removed", "killed", "signalled"):
        assert place.interventions(what) == 0, what


async def test_limits_that_somebody_else_changed_are_put_back(place: Place, box: Box) -> None:
    place.follow()
    await place.listens()
    await place.engine.update(container_id(box), replace(box.record.spec, pids_limit=10_000))
    await until(lambda: place.interventions("limits_changed") == 1)
    await until(lambda: place.engine._containers[container_id(box)].plan.spec.pids_limit == box.record.spec.pids_limit)
    assert place.lab.sandboxes.get(box.id).state is SandboxState.RUNNING


async def test_limits_that_were_changed_while_no_events_came_are_put_back(place: Place, box: Box) -> None:
    place.follow()
    await place.listens()
    place.engine.broken = [EngineUnavailable("subprocess", "it broke off")]
    await place.engine.update(container_id(box), replace(box.record.spec, pids_limit=10_000))  # this event is lost
    await until(lambda: place.interventions("limits_changed") == 1)
    await until(lambda: place.engine._containers[container_id(box)].plan.spec.pids_limit == box.record.spec.pids_limit)


async def test_events_that_lie_change_nothing(place: Place, box: Box) -> None:
    place.follow()
    await place.listens()
    for change in ContainerChange:
        place.engine.tell(container_id(box), change)
        place.engine.tell("f" * 64, change)
    await until(lambda: place.interventions("network_connected") == 1)
    await until(lambda: not any(task.get_name().startswith(("look", "check")) for task in asyncio.all_tasks()))
    assert (await box.shell("echo on")).stdout == b"on\n"
    assert place.lab.sandboxes.get(box.id).state is SandboxState.RUNNING


async def test_what_happened_while_no_events_came_is_found_afterwards(place: Place) -> None:
    place.follow()
    await place.listens()
    box = await place.lab.box(remove_on_exit=False)
    await place.lab.sandboxes.stop(box.id)
    container = container_id(box)
    place.engine.tell(container, ContainerChange.RENAMED)
    await until(lambda: place.interventions("renamed") == 1)
    before = time.time_ns()
    place.engine.broken = [EngineUnavailable("subprocess", "it broke off")]
    await place.engine.remove(container)  # this event is the one that is lost
    assert (await place.enters(box, SandboxState.ERROR)).state_reason == REMOVED
    await place.listens(2)
    assert place.lab.metrics.value("enclaved_engine_event_gaps_total") == 1
    assert place.engine.opened[0] == 0
    assert 0 < place.engine.opened[1] <= before, "from where the first one was"


async def test_an_engine_that_is_away_is_one_gap_however_long_it_is_away(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Semaphore(0)

    @asynccontextmanager
    async def away(since_ns: int = 0) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        asked.release()
        raise EngineUnavailable("subprocess", "it is away")
        yield

    place.follow()
    await place.listens()
    place.engine.broken = [EngineUnavailable("subprocess", "it broke off")]
    monkeypatch.setattr(place.engine, "events", away)
    place.engine.tell("f" * 64, ContainerChange.RENAMED)
    for _ in range(5):
        await asked.acquire()
    assert place.lab.metrics.value("enclaved_engine_event_gaps_total") == 1
    assert place.lab.metrics.value("enclaved_engine_events_connected") == 0
    assert [record.message for record in caplog.records].count("engine events broke off") == 1


async def test_an_event_that_cannot_be_read_is_not_asked_for_again(place: Place, box: Box) -> None:
    place.follow()
    await place.listens()
    place.engine.broken = [EngineRefused("tell what happens", "it is too long")]
    place.engine.tell(container_id(box), ContainerChange.RENAMED)
    await place.listens(2)
    assert place.engine.opened[1] == 0


async def test_everything_is_compared_from_time_to_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REOPEN_EVERY_S", 0.05)
    place.engine.deaf = True
    place.follow()
    box = await place.lab.box(remove_on_exit=False)
    await place.lab.sandboxes.stop(box.id)
    await place.engine.remove(container_id(box))
    assert (await place.enters(box, SandboxState.ERROR)).state_reason == REMOVED
    assert place.lab.metrics.value("enclaved_engine_event_gaps_total") == 0
