"""Tasks that outlive the call that started them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from enclaved.core.background import Background


async def test_finished_work_goes_on_when_its_caller_is_cancelled() -> None:
    background, gate = Background(), asyncio.Event()
    done = []

    async def work() -> None:
        await gate.wait()
        done.append("work")

    caller = asyncio.create_task(background.finish(work(), "work"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await asyncio.gather(*background._tasks)
    assert done == ["work"]


async def test_a_failure_is_logged_where_the_caller_has_left_and_only_there(caplog: pytest.LogCaptureFixture) -> None:
    background, gate = Background(), asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise ValueError("reason")

    here, gone = (asyncio.create_task(background.finish(fail(), name)) for name in ("here", "gone"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    gate.set()
    await asyncio.wait([here, *background._tasks])
    await asyncio.sleep(0)
    assert isinstance(here.exception(), ValueError)
    assert [record.__dict__["task"] for record in caplog.records] == ["gone"]


async def test_finish_hands_on_what_the_work_returns_and_raises() -> None:
    background = Background()

    async def fail() -> None:
        raise ValueError("reason")

    assert await background.finish(asyncio.sleep(0, "result"), "sleep") == "result"
    with pytest.raises(ValueError, match="reason"):
        await background.finish(fail(), "fail")


async def test_a_failure_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    background, gate = Background(), asyncio.Event()

    async def fail() -> None:
        raise ValueError("reason")

    other = background.spawn(gate.wait(), "other")
    failed = background.spawn(fail(), "fail")
    await asyncio.wait([failed])
    await asyncio.sleep(0)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "background task failed")
    ]
    gate.set()
    assert await other is True


async def test_close_cancels_what_still_runs_and_waits_for_it() -> None:
    background = Background()
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("work")

    background.spawn(work(), "work")
    await asyncio.sleep(0)
    await background.close(10)
    assert cleaned == ["work"]
    assert background._tasks == set()
    await background.close(10)


async def test_close_does_not_wait_beyond_its_deadline() -> None:
    background, gate = Background(), asyncio.Event()

    async def stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    task = background.spawn(stubborn(), "stubborn")
    await asyncio.sleep(0)
    await background.close(0.01)
    assert not task.done()
    gate.set()
    await task
