"""The engine as the daemon sees it: calls are counted, and one that fails has it looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from enclaved.core import engine as engine_module
from enclaved.core.engine import WatchedRuntime
from enclaved.errors import EngineUnavailable, ImageNotFound
from enclaved.metrics import Metrics
from enclaved.model import EngineInfo

AWAY = EngineUnavailable("unix:///x", "no answer")


class Engine:
    """An engine that may be away."""

    def __init__(self) -> None:
        self.away = False
        self.looks: asyncio.Queue[None] = asyncio.Queue()

    async def looked(self, times: int) -> None:
        """Waits until it was looked at so often since the last time."""
        async with asyncio.timeout(10):
            for _ in range(times):
                await self.looks.get()

    async def info(self) -> EngineInfo:
        self.looks.put_nowait(None)
        if self.away:
            raise AWAY
        return EngineInfo(name="fake", version="1")

    async def status(self, container_id: str) -> None:
        if self.away:
            raise AWAY

    async def resolve_image(self, image: str, *, may_pull: bool) -> None:
        raise ImageNotFound(image, "it is not there")

    @asynccontextmanager
    async def starting(self, container_id: str) -> AsyncIterator[str]:
        yield "tail"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="0")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def watched(engine: Any, metrics: Metrics) -> WatchedRuntime:
    return WatchedRuntime(engine, metrics)


class Watch:
    """Follows what a watch tells."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[bool] = asyncio.Queue()

    async def __call__(self, available: bool) -> None:
        await self.told.put(available)

    async def next(self) -> bool:
        async with asyncio.timeout(10):
            return await self.told.get()


@asynccontextmanager
async def watching(watched: WatchedRuntime) -> AsyncIterator[Watch]:
    watch = Watch()
    task = asyncio.create_task(watched.watch(watch))
    try:
        yield watch
    finally:
        task.cancel()


async def test_calls_are_counted_by_outcome_and_timed(watched: WatchedRuntime, engine: Engine, metrics: Metrics):
    await watched.status("c")
    engine.away = True
    with pytest.raises(EngineUnavailable):
        await watched.status("c")
    with pytest.raises(ImageNotFound):
        await watched.resolve_image("x", may_pull=False)
    for call, outcome in (("status", "ok"), ("status", "engine_unavailable"), ("resolve_image", "image_not_found")):
        assert metrics.value("enclaved_engine_calls_total", call=call, outcome=outcome) == 1
    assert metrics.value("enclaved_engine_call_seconds_count", call="status") == 2


async def test_of_a_start_only_the_start_is_judged(watched: WatchedRuntime, metrics: Metrics):
    async def use() -> None:
        async with watched.starting("c") as tail:
            assert tail == "tail"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert metrics.value("enclaved_engine_calls_total", call="start", outcome="ok") == 1


async def test_an_engine_is_away_until_it_has_answered(watched: WatchedRuntime, metrics: Metrics):
    assert not watched.available
    assert metrics.value("enclaved_engine_up") == 0
    async with watching(watched) as watch:
        assert await watch.next() is True
    assert watched.available
    assert metrics.value("enclaved_engine_up") == 1


async def test_a_call_that_finds_the_engine_away_has_it_looked_at_at_once(
    watched: WatchedRuntime, engine: Engine, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_module, "LOOK_EVERY_S", 3600)
    monkeypatch.setattr(engine_module, "LOOK_EVERY_WHILE_AWAY_S", 0.01)
    async with watching(watched) as watch:
        assert await watch.next() is True
        engine.away = True
        with pytest.raises(EngineUnavailable):
            await watched.status("c")
        assert await watch.next() is False
        assert (watched.available, metrics.value("enclaved_engine_up")) == (False, 0)
        engine.away = False
        assert await watch.next() is True
    assert watched.available


async def test_one_call_that_fails_decides_nothing_while_the_engine_answers(
    watched: WatchedRuntime, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_module, "LOOK_EVERY_S", 3600)
    async with watching(watched) as watch:
        assert await watch.next() is True
        engine.away = True
        with pytest.raises(EngineUnavailable):
            await watched.status("c")
        engine.away = False
        await engine.looked(2)
        assert watch.told.empty()
    assert watched.available


async def test_the_log_says_once_that_an_engine_is_away(
    watched: WatchedRuntime, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(engine_module, "LOOK_EVERY_WHILE_AWAY_S", 0)
    engine.away = True
    async with watching(watched) as watch:
        assert await watch.next() is False
        await engine.looked(5)
    assert len([record for record in caplog.records if "engine does not answer" in record.message]) == 1
