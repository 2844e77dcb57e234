"""Sandboxes that are frozen, on request or behind our back, and go on where they were."""

from __future__ import annotations

import asyncio

import pytest

from enclaved.core import execution, overdue, watching
from enclaved.core.pausing import FROM_OUTSIDE, ON_REQUEST
from enclaved.errors import SandboxNotFound, WrongState
from enclaved.model import SandboxState, Verdict
from tests.service.guest.laboratory import Box, Laboratory, first_output, follow, printed, until

TICKS = "import time\nprint('begun', flush=True)\nwhile True: open('ticks', 'a').write('x'); time.sleep(0.01)"


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(watching, "PING_PATIENCE_S", 0.2)
    monkeypatch.setattr(watching, "STATUS_EVERY_S", 0.05)


def container_id(box: Box) -> str:
    assert box.record.container_id is not None
    return box.record.container_id


async def test_a_paused_sandbox_stands_still_and_goes_on_where_it_was(lab: Laboratory, box: Box) -> None:
    running = await box.open_python(TICKS, isolated=True)
    await first_output(running)
    paused = await lab.sandboxes.pause(box.id)
    assert (paused.state, paused.state_reason) == (SandboxState.PAUSED, ON_REQUEST)
    ticks = lab.runtime._containers[container_id(box)].working_dir / "ticks"
    before = ticks.stat().st_size
    await asyncio.sleep(0.2)
    assert ticks.stat().st_size == before
    assert (await lab.sandboxes.pause(box.id)).state is SandboxState.PAUSED, "a second time changes nothing"
    assert lab.metrics.value("enclaved_sandboxes", state="paused") == 1
    resumed = await lab.sandboxes.resume(box.id)
    assert (resumed.state, resumed.state_reason) == (SandboxState.RUNNING, "")
    assert (await lab.sandboxes.resume(box.id)).state is SandboxState.RUNNING
    await until(lambda: ticks.stat().st_size > before)
    running.cancel("the test")
    await running.ended


@pytest.mark.parametrize("limit", [{"timeout_s": 1.0}, {"idle_timeout_s": 1.0}])
async def test_the_timeouts_of_executions_stand_still(lab: Laboratory, box: Box, limit: dict[str, float]) -> None:
    running = await box.open_shell("echo begun; sleep 600", **limit)
    await first_output(running)
    await lab.sandboxes.pause(box.id)
    await asyncio.sleep(1.5)
    await lab.sandboxes.resume(box.id)
    # A guest whose clock had gone on would end it before it answers.
    await box.record.running_link().ping(5)
    assert not running.ended.done()
    finished = await running.ended
    assert finished.verdict in (Verdict.TIMEOUT, Verdict.IDLE_TIMEOUT)
    assert finished.phases.running_s > 2


async def test_an_execution_in_a_paused_sandbox_is_not_overdue(
    lab: Laboratory, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", 0.1)
    running = await box.open_shell("sleep 600", timeout_s=0.5)
    await lab.sandboxes.pause(box.id)
    await asyncio.sleep(1.0)
    assert lab.sandboxes.get(box.id).state is SandboxState.PAUSED
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", 15.0)
    await lab.sandboxes.resume(box.id)
    assert (await running.ended).verdict is Verdict.TIMEOUT


async def test_the_grace_of_a_client_that_left_stands_still(lab: Laboratory, box: Box) -> None:
    running = await box.open_shell("sleep 600", detach_grace_s=0.2)
    async with running.attach():
        await lab.sandboxes.pause(box.id)
    await asyncio.sleep(0.6)
    assert running.cancelled_by == ""
    await lab.sandboxes.resume(box.id)
    assert (await running.ended).verdict is Verdict.CANCELLED
    assert running.cancelled_by == execution.BY_GRACE


async def test_using_a_paused_sandbox_is_refused_or_resumes_it(lab: Laboratory) -> None:
    box, light = await lab.box(), await lab.box(auto_resume=True)
    await light.python("kept = 6")
    for each in (box, light):
        await lab.sandboxes.pause(each.id)
    with pytest.raises(WrongState, match="resume it first"):
        await box.python("1")
    assert printed(await light.python("print(kept * 7)")) == "42\n"
    assert lab.sandboxes.get(light.id).state is SandboxState.RUNNING


async def test_one_that_waits_to_be_used_is_resumed_once(lab: Laboratory) -> None:
    box = await lab.box(auto_resume=True)
    await lab.sandboxes.pause(box.id)
    results = await asyncio.gather(*(box.shell(f"echo {number}") for number in range(5)))
    assert [printed(result) for result in results] == [f"{number}\n" for number in range(5)]


async def test_a_paused_sandbox_can_be_stopped_started_and_deleted(lab: Laboratory) -> None:
    for keep in (True, False):
        box = await lab.box(remove_on_exit=not keep)
        await box.shell("echo kept > file")
        await lab.sandboxes.pause(box.id)
        assert (await lab.sandboxes.start(box.id)).state is SandboxState.RUNNING, "start resumes it"
        await lab.sandboxes.pause(box.id)
        assert (await lab.sandboxes.stop(box.id)).state is SandboxState.STOPPED
        with pytest.raises(WrongState):
            await lab.sandboxes.pause(box.id)
        with pytest.raises(WrongState):
            await lab.sandboxes.resume(box.id)
        await lab.sandboxes.start(box.id)
        assert printed(await box.shell("cat file 2> /dev/null || echo none")) == ("kept\n" if keep else "none\n")
        await lab.sandboxes.pause(box.id)
        await lab.sandboxes.delete(box.id)
        with pytest.raises(SandboxNotFound):
            lab.sandboxes.get(box.id)


async def test_a_sandbox_that_is_paused_and_resumed_behind_our_back_is_shown_so(lab: Laboratory, box: Box) -> None:
    waiting = asyncio.create_task(box.shell("sleep 0.5; echo on"))
    await until(lambda: box.record.active_executions > 0)
    await lab.runtime.pause(container_id(box))
    await until(lambda: lab.sandboxes.get(box.id).state is SandboxState.PAUSED)
    assert lab.sandboxes.get(box.id).state_reason == FROM_OUTSIDE
    await lab.runtime.unpause(container_id(box))
    await until(lambda: lab.sandboxes.get(box.id).state is SandboxState.RUNNING)
    assert printed(await waiting) == "on\n"
    await lab.sandboxes.pause(box.id)
    await lab.runtime.unpause(container_id(box))
    await until(lambda: lab.sandboxes.get(box.id).state is SandboxState.RUNNING)
    assert printed(await box.shell("echo on")) == "on\n"


async def test_a_paused_sandbox_that_dies_is_lost(lab: Laboratory, box: Box) -> None:
    running = await box.open_shell("sleep 600")
    story = asyncio.create_task(follow(running))
    await lab.sandboxes.pause(box.id)
    process = lab.runtime._containers[container_id(box)].process
    assert process is not None
    process.kill()
    finished = (await story).finished
    assert finished is not None
    assert finished.verdict is Verdict.SANDBOX_LOST
    assert lab.sandboxes.get(box.id).state is SandboxState.ERROR


async def test_pausing_at_any_moment_hurts_no_execution(lab: Laboratory, box: Box) -> None:
    async def nap() -> None:
        for _ in range(5):
            await lab.sandboxes.pause(box.id)
            await lab.sandboxes.resume(box.id)

    results, _ = await asyncio.gather(
        asyncio.gather(*(box.open_shell(f"sleep 0.05; echo {number}") for number in range(10))), asyncio.sleep(0)
    )
    stories, _ = await asyncio.gather(asyncio.gather(*(follow(each) for each in results)), nap())
    assert [story.stdout for story in stories] == [b"%d\n" % number for number in range(10)]
