"""Sandboxes from create to delete, and what happens when two wishes meet or the guest goes away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from enclaved.core import watching
from enclaved.errors import (
    EngineRefused,
    ExecutionNotFound,
    InvalidRequest,
    LimitReached,
    SandboxExists,
    SandboxLost,
    SandboxNotFound,
    WrongState,
)
from enclaved.model import SandboxRequest, SandboxState, ToolCall, Verdict
from tests.service.guest.laboratory import (
    PATIENCE_S,
    Box,
    Laboratory,
    Story,
    ended,
    first_output,
    follow,
    printed,
    until,
)
from tests.service.guest.tuning import replace_guests


@asynccontextmanager
async def held_removals(lab: Laboratory) -> AsyncIterator[asyncio.Event]:
    """Lets removals begin, and go on only after the block; the event says that one has begun."""
    begun, go = asyncio.Event(), asyncio.Event()
    remove = lab.runtime.remove

    async def slow(container_id: str) -> None:
        begun.set()
        await go.wait()
        await remove(container_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.runtime, "remove", slow)
        try:
            yield begun
        finally:
            go.set()


def gauges(lab: Laboratory) -> dict[str, float]:
    """How many sandboxes the metrics count in each state, without the states that have none."""
    found = {state.value: lab.metrics.value("enclaved_sandboxes", state=state.value) for state in SandboxState}
    return {state: count for state, count in found.items() if count}


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have looked yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return True
    return status.rpartition(") ")[2][0] in "ZX"


async def test_a_sandbox_is_made_used_and_deleted_without_a_trace(lab: Laboratory) -> None:
    box = await lab.box()
    sandbox = lab.sandboxes.get(box.id)
    assert sandbox.state is SandboxState.RUNNING
    assert gauges(lab) == {"running": 1}
    assert printed(await box.shell("echo hello")) == "hello\n"

    directory, guest = box.record.directory, box.guest_pid()
    await lab.sandboxes.delete(box.id)

    with pytest.raises(SandboxNotFound):
        lab.sandboxes.get(box.id)
    assert gauges(lab) == {}
    assert not directory.exists()
    await until(lambda: is_gone(guest))
    assert await lab.runtime.list_records() == []


async def test_a_stopped_sandbox_can_be_started_again_and_is_empty(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=True)
    await box.python("x = 1\nopen('file', 'w').close()")
    stopped = await lab.sandboxes.stop(box.id)
    assert (stopped.state, stopped.state_reason) == (SandboxState.STOPPED, "stopped on request")
    with pytest.raises(WrongState, match="start it again first"):
        await box.python("1")

    assert (await lab.sandboxes.start(box.id)).state is SandboxState.RUNNING
    result = await box.python("import os\nprint('x' in globals(), os.listdir())")
    assert printed(result) == "False []\n"
    assert result.notices == ()


async def test_a_sandbox_that_is_kept_keeps_its_files_over_a_stop_and_loses_its_processes(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=False)
    await box.python("x = 1\nopen('file', 'w').write('kept')")
    sleeper = await box.open_shell("echo $$; exec sleep 600")
    pid = await first_output(sleeper)
    guest = box.guest_pid()

    await lab.sandboxes.stop(box.id)
    finished = (await follow(sleeper)).finished
    assert finished is not None
    assert (finished.verdict, finished.message) == (Verdict.SANDBOX_LOST, "the sandbox was stopped")
    with pytest.raises(WrongState):
        await box.python("1")

    await lab.sandboxes.start(box.id)
    assert box.guest_pid() == guest
    assert await box.survivors(pid) == []
    assert printed(await box.python("print('x' in globals(), open('file').read())")) == "False kept\n"


async def test_stopping_a_crowd_leaves_nothing_of_it(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=False)
    code = (
        "import os, time\n"
        "for _ in range(10):\n"
        "    if not os.fork(): os.setsid(); time.sleep(600)\n"
        "print(1)\n"
        "time.sleep(600)"
    )
    running = [await box.open_python(code, isolated=True) for _ in range(3)]
    running += [await box.open_python(code) for _ in range(2)]
    for execution in running[:4]:
        assert await first_output(execution) == b"1\n"
    await lab.sandboxes.stop(box.id)
    verdicts = [(await execution.ended).verdict for execution in running]
    assert verdicts == [Verdict.SANDBOX_LOST] * 5
    await lab.sandboxes.start(box.id)
    of_users = [process for process in await box.processes() if process["uid"] != 0]
    assert len(of_users) <= 1, of_users  # a child that waits for work


async def test_stop_and_start_say_nothing_when_there_is_nothing_to_do(lab: Laboratory) -> None:
    box = await lab.box()
    assert (await lab.sandboxes.start(box.id)).state is SandboxState.RUNNING
    await lab.sandboxes.stop(box.id)
    assert (await lab.sandboxes.stop(box.id)).state is SandboxState.STOPPED
    await lab.sandboxes.delete(box.id)
    for act in (lab.sandboxes.start, lab.sandboxes.stop, lab.sandboxes.delete):
        with pytest.raises(SandboxNotFound):
            await act(box.id)


async def test_stop_start_and_delete_at_once_end_in_one_of_their_orders(lab: Laboratory) -> None:
    box = await lab.box()
    calls = [lab.sandboxes.stop, lab.sandboxes.start, lab.sandboxes.delete, lab.sandboxes.stop, lab.sandboxes.delete]
    results = await asyncio.gather(*(call(box.id) for call in calls), return_exceptions=True)
    assert results[2] is None
    assert isinstance(results[3], SandboxNotFound)
    assert results[4] is None
    assert gauges(lab) == {}
    assert await lab.runtime.list_records() == []


async def test_a_stop_whose_caller_left_is_finished_before_the_delete_after_it(lab: Laboratory) -> None:
    box = await lab.box()
    async with held_removals(lab) as begun:
        stopping = asyncio.create_task(lab.sandboxes.stop(box.id))
        await begun.wait()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        deleting = asyncio.create_task(lab.sandboxes.delete(box.id))
        await asyncio.sleep(0)
        assert lab.sandboxes.get(box.id).state is SandboxState.DELETING
    await deleting
    assert gauges(lab) == {}
    assert await lab.runtime.list_records() == []


async def test_a_delete_whose_caller_left_is_done_all_the_same(lab: Laboratory) -> None:
    box = await lab.box()
    async with held_removals(lab) as begun:
        deleting = asyncio.create_task(lab.sandboxes.delete(box.id))
        await begun.wait()
        deleting.cancel()
        again = asyncio.create_task(lab.sandboxes.delete(box.id))
    await again
    assert gauges(lab) == {}


async def test_a_create_whose_caller_left_leaves_nothing(lab: Laboratory) -> None:
    creating = asyncio.create_task(lab.sandboxes.create(SandboxRequest(), sandbox_id="mine"))
    await until(lambda: bool(lab.runtime._containers))
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert gauges(lab) == {}
    assert await lab.runtime.list_records() == []
    assert list((lab.state_dir / "s").iterdir()) == []
    await lab.sandboxes.create(SandboxRequest(), sandbox_id="mine")


async def test_a_delete_during_the_create_ends_it(lab: Laboratory) -> None:
    creating = asyncio.create_task(lab.sandboxes.create(SandboxRequest(), sandbox_id="mine"))
    await until(lambda: bool(lab.runtime._containers))
    await lab.sandboxes.delete("mine")
    with pytest.raises(SandboxLost, match="deleted while it was being made"):
        await creating
    assert gauges(lab) == {}
    assert await lab.runtime.list_records() == []


async def test_an_id_belongs_to_one_sandbox(lab: Laboratory) -> None:
    await lab.sandboxes.create(SandboxRequest(), sandbox_id="mine")
    with pytest.raises(SandboxExists):
        await lab.sandboxes.create(SandboxRequest(), sandbox_id="mine")
    with pytest.raises(InvalidRequest):
        await lab.sandboxes.create(SandboxRequest(), sandbox_id="../mine")


async def test_a_guest_that_cannot_start_says_why(lab: Laboratory) -> None:
    replace_guests(lab, "import sys\nsys.exit('no guest today')")
    with pytest.raises(EngineRefused, match="its guest ended with code 1: no guest today"):
        await lab.box()
    assert gauges(lab) == {}
    assert await lab.runtime.list_records() == []
    assert list((lab.state_dir / "s").iterdir()) == []


async def test_users_of_sandboxes_differ(lab: Laboratory) -> None:
    boxes = await asyncio.gather(*(lab.box() for _ in range(3)))
    assert len({box.record.uid for box in boxes}) == 3
    seen = [printed(await box.shell("id -u")) for box in boxes]
    assert seen == [f"{box.record.uid}\n" for box in boxes]


async def test_a_killed_guest_is_the_end_of_the_sandbox_and_of_what_ran_in_it(lab: Laboratory) -> None:
    box = await lab.box()
    attached = await box.open_shell("echo begun; exec sleep 600")
    begun = asyncio.Event()

    async def note(story: Story) -> None:
        begun.set()

    reading = asyncio.create_task(follow(attached, on_output=note))
    await begun.wait()
    collecting = asyncio.create_task(box.isolated("import time; time.sleep(600)"))
    queued = [asyncio.create_task(box.python("import time; time.sleep(600)")) for _ in range(2)]
    await until(lambda: lab.sandboxes.get(box.id).active_executions == 4)

    os.kill(box.guest_pid(), signal.SIGKILL)

    story = await reading
    assert story.stdout == b"begun\n"
    assert story.finished is not None
    for finished in (story.finished, *map(ended, await asyncio.gather(collecting, *queued))):
        assert finished.verdict is Verdict.SANDBOX_LOST
        assert f"sandbox {box.id!r} was lost: its container ended with code" in finished.message
    sandbox = lab.sandboxes.get(box.id)
    assert sandbox.state is SandboxState.ERROR
    assert sandbox.active_executions == 0
    with pytest.raises(WrongState, match="delete it and create another one"):
        await box.python("1")
    with pytest.raises(WrongState):
        await lab.sandboxes.start(box.id)
    with pytest.raises(WrongState):
        async with lab.files.read(box.id, "file"):
            pass
    await lab.sandboxes.delete(box.id)
    assert gauges(lab) == {}


async def test_a_guest_that_stops_answering_is_given_up(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(watching, "PING_PATIENCE_S", 0.2)
    box = await lab.box()
    running = await box.open_shell("echo begun; exec sleep 600")
    assert await first_output(running) == b"begun\n"
    os.kill(box.guest_pid(), signal.SIGSTOP)
    finished = await running.ended
    assert finished.verdict is Verdict.SANDBOX_LOST
    assert "its guest did not answer for 0.2 s" in finished.message
    assert lab.sandboxes.get(box.id).state is SandboxState.ERROR
    await until(lambda: not lab.runtime._containers)


async def test_files_of_a_lost_sandbox_are_an_error_that_names_it(lab: Laboratory) -> None:
    box = await lab.box()
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            begun.set()
            yield b"x" * 1000

    writing = asyncio.create_task(lab.files.write(box.id, "file", endless()))
    await begun.wait()
    os.kill(box.guest_pid(), signal.SIGKILL)
    with pytest.raises(SandboxLost, match=box.id):
        await writing


async def test_a_sandbox_ends_with_its_time_to_live(lab: Laboratory) -> None:
    box = await lab.box(ttl_s=1.0)
    running = await box.open_shell("sleep 600")
    assert (await running.ended).verdict is Verdict.SANDBOX_LOST
    await until(lambda: not gauges(lab))


async def test_executions_of_a_deleted_sandbox_are_lost_and_their_results_stay(lab: Laboratory) -> None:
    box = await lab.box()
    done = await box.open_shell("echo done")
    await done.ended
    running = await box.open_shell("sleep 600")
    await lab.sandboxes.delete(box.id)
    assert (await running.ended).verdict is Verdict.SANDBOX_LOST
    assert (await done.ended).verdict is Verdict.EXITED
    assert lab.executions.get(done.id) is done
    with pytest.raises(SandboxLost, match="it was deleted"):
        await follow(done)  # its output went with the sandbox
    story = await follow(running)
    assert story.finished is not None


async def test_there_is_a_limit_to_executions_of_one_sandbox(box: Box) -> None:
    box.lab.executions.most = 2
    running = [await box.open_shell("sleep 600") for _ in range(2)]
    with pytest.raises(LimitReached, match="runs 2 executions already"):
        await box.open_shell("true")
    running[0].cancel("the test")
    await running[0].ended
    assert printed(await box.shell("echo room")) == "room\n"


async def test_an_execution_id_is_one_execution(lab: Laboratory) -> None:
    box, other = await lab.box(), await lab.box()
    call = ToolCall(box.id, "shell_executor", {"command": "echo $RANDOM$RANDOM"}, execution_id="once")
    first, second = await asyncio.gather(lab.executions.run(call), lab.executions.run(call))
    assert first.stdout == second.stdout
    assert first.execution_id == second.execution_id == "once"
    assert lab.executions.get("once", box.id).id == "once"
    with pytest.raises(ExecutionNotFound):
        lab.executions.get("once", other.id)
    with pytest.raises(InvalidRequest, match="another sandbox"):
        await lab.executions.open(ToolCall(other.id, "shell_executor", {"command": "true"}, execution_id="once"))


async def test_closing_deletes_everything_and_admits_nothing(lab: Laboratory) -> None:
    boxes = [await lab.box(), await lab.box(remove_on_exit=False)]
    running = await boxes[0].open_shell("sleep 600")
    await lab.sandboxes.close(PATIENCE_S)
    assert gauges(lab) == {}
    assert (await running.ended).verdict is Verdict.SANDBOX_LOST
    with pytest.raises(Exception, match="shutting down"):
        await lab.box()
