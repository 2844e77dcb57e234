"""Those who follow an execution: slow ones, late ones, ones that leave, and ones whose sandbox goes away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from enclaved.core import overdue, retention, watching
from enclaved.core.executions import Execution
from enclaved.errors import ExecutionNotFound, SandboxLost
from enclaved.model import STDERR, STDOUT, Event, Retention, SandboxState, Verdict
from enclaved.runtime.base import ContainerStatus
from tests.service.guest.laboratory import PATIENCE_S, Box, Laboratory, Story, first_output, follow, printed, until
from tests.service.guest.tuning import tune_guests

# Ends with more than its pipe takes, so that it cannot end before somebody has read.
ALTERNATING = (
    "import os\nfor _ in range(5000):\n    os.write(1, b'o')\n    os.write(2, b'e')\nos.write(1, bytes(100_000))\n"
)
OUT, ERR = b"o" * 5000 + bytes(100_000), b"e" * 5000
NUMBERS = b"".join(b"%d\n" % number for number in range(1, 100_001))  # larger than credit, smaller than the journal


async def begin(story: Story, events: AsyncIterator[Event]) -> None:
    """Reads up to the first output."""
    while not story.stdout:
        story.add(await anext(events))


async def finish(story: Story, events: AsyncIterator[Event]) -> None:
    """Reads the rest."""
    async for event in events:
        story.add(event)


def known(lab: Laboratory, execution: Execution) -> bool:
    """Whether the daemon still has the record of an execution."""
    try:
        return lab.executions.get(execution.id) is execution
    except ExecutionNotFound:
        return False


async def guest_knows(box: Box, execution: Execution) -> bool:
    """Whether the guest still has the record of an execution that the daemon has forgotten."""
    link = box.record.running_link()
    link.handles[execution.handle.name] = execution.handle
    execution.handle._failure = None
    reader = execution.handle.subscribe({})
    try:
        await reader.subscribed
    except ExecutionNotFound:
        return False
    finally:
        reader.close()
        link.handles.pop(execution.handle.name, None)
    return True


async def test_a_program_that_alternates_between_its_outputs_is_followed_to_its_end(lab: Laboratory) -> None:
    """Bookkeeping fills its journal long before the client has received enough for an acknowledgement by size."""
    tune_guests(lab, JOURNAL_BYTES=4000)
    box = await lab.box()
    execution = await box.open_python(ALTERNATING, isolated=True)
    story = await follow(execution)
    assert (story.stdout, story.stderr) == (OUT, ERR)
    assert story.notices == []
    assert story.finished is not None
    assert story.finished.verdict is Verdict.EXITED


async def test_a_run_of_a_program_that_fills_its_journal_with_bookkeeping_is_continued_by_attach(
    lab: Laboratory,
) -> None:
    tune_guests(lab, JOURNAL_BYTES=4000)
    box = await lab.box()
    result = await box.isolated(ALTERNATING)
    assert result.finished is None
    execution = lab.executions.get(result.execution_id)
    story = await follow(execution, {STDOUT: len(result.stdout), STDERR: len(result.stderr)})
    assert (result.stdout + story.stdout, result.stderr + story.stderr) == (OUT, ERR)


async def test_a_slow_reader_gets_every_byte_however_long_it_takes_and_whatever_ends_meanwhile(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORD_KEPT_S", 0.05)
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 4)
    tune_guests(lab, RECORD_KEPT_S=0.05, RECORDS_EXPIRE_EVERY_S=0.02, RECORDS_KEPT=4)
    box = await lab.box()
    slow = await box.open_shell("seq 100000")
    story = Story()
    async with slow.attach() as events:
        await begin(story, events)
        await slow.ended
        others = []
        for _ in range(8):
            others.append(await box.open_shell("seq 100000"))
            await others[-1].ended
        await until(lambda: all(not known(lab, other) for other in others))  # nobody reads these
        async with asyncio.timeout(PATIENCE_S):
            for other in others:
                while await guest_knows(box, other):
                    pass
        assert lab.executions.get(slow.id) is slow
        await finish(story, events)
    assert story.stdout == NUMBERS
    assert story.finished is not None
    await until(lambda: not known(lab, slow))


async def test_the_latest_records_are_kept_and_the_one_that_is_read(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 3)
    box = await lab.box()
    made = [await box.open_shell("seq 100000")]
    async with made[0].attach() as events:
        story = Story()
        await begin(story, events)
        for _ in range(6):
            made.append(await box.open_shell("true"))
            await made[-1].ended
        assert [known(lab, execution) for execution in made] == [True, False, False, False, False, True, True]
        await finish(story, events)
    assert story.stdout == NUMBERS


async def test_output_that_nobody_needs_goes_with_its_record(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the guest, which has memory for so many of them only."""
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 2)
    tune_guests(lab, RECORDS_KEPT=2, EXECUTIONS_MAX=8)
    box = await lab.box()
    for _ in range(12):
        execution = await box.open_shell("seq 100000", retention=Retention.KEEP_LAST)
        assert (await execution.ended).verdict is Verdict.EXITED
        printed(await box.shell("seq 100"))


async def test_output_that_nobody_has_read_outlives_any_number_of_others(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 2)
    tune_guests(lab, RECORDS_KEPT=2, RECORD_SETTLED_S=0)
    box = await lab.box()
    unread = [await box.open_shell(f"seq {number} 100000") for number in range(1, 6)]
    for execution in unread:
        await execution.ended
    for _ in range(6):
        printed(await box.shell("echo other"))
    for number, execution in enumerate(unread, start=1):
        assert (await follow(execution)).stdout == b"".join(b"%d\n" % line for line in range(number, 100_001))


async def test_who_attaches_when_the_record_is_gone_is_told(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RECORDS_PER_SANDBOX", 1)
    box = await lab.box()
    gone = await box.open_shell("echo gone")
    await follow(gone)
    await box.shell("true")
    story = await follow(gone)
    assert (story.stdout, story.finished) == (b"", gone.finished)
    assert [notice.length_bytes for notice in story.notices] == [5]
    assert gone.handle.readers == {}


async def test_a_sandbox_that_goes_while_the_rest_of_an_output_is_delivered_is_an_error_and_no_shorter_output(
    lab: Laboratory,
) -> None:
    box = await lab.box()
    execution = await box.open_shell("seq 100000")
    story = Story()
    async with execution.attach() as events:
        await begin(story, events)
        assert (await execution.ended).verdict is Verdict.EXITED
        await lab.sandboxes.stop(box.id)
        with pytest.raises(SandboxLost, match="it was stopped"):
            await finish(story, events)
    assert len(story.stdout) < len(NUMBERS)
    assert execution.handle.readers == {}


async def test_a_sandbox_that_goes_while_a_result_is_gathered_is_an_error_and_no_shorter_result(
    lab: Laboratory,
) -> None:
    box = await lab.box()
    execution = await box.open_shell("seq 100000")
    assert (await execution.ended).verdict is Verdict.EXITED
    os.kill(box.guest_pid(), signal.SIGSTOP)  # so that the rest cannot come
    gathering = asyncio.create_task(execution.collect())
    await until(lambda: execution.attached)
    await lab.sandboxes.delete(box.id)
    with pytest.raises(SandboxLost, match="it was deleted"):
        await gathering
    assert execution.handle.readers == {}


async def test_output_outlives_a_stop_of_a_sandbox_that_is_kept(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=False)
    execution = await box.open_shell("seq 100000")
    story = Story()
    async with execution.attach() as events:
        await begin(story, events)
        await execution.ended
        await lab.sandboxes.stop(box.id)
        await finish(story, events)
    assert story.stdout == NUMBERS


async def test_attaches_that_are_given_up_before_they_begin_leave_nothing(box: Box) -> None:
    execution = await box.open_shell("echo begun; read line; echo $line", stdin=True)
    await first_output(execution)
    os.kill(box.guest_pid(), signal.SIGSTOP)
    attaching = [asyncio.create_task(follow(execution)) for _ in range(5)]
    attaching += [asyncio.create_task(follow(execution, {STDOUT: 2}, observe=True)) for _ in range(5)]
    attaching += [asyncio.create_task(execution.collect()) for _ in range(5)]
    await until(lambda: len(execution.handle.readers) == len(attaching))
    for task in attaching:
        task.cancel()
    await asyncio.wait(attaching)
    assert execution.handle.readers == {}
    assert not execution.attached
    os.kill(box.guest_pid(), signal.SIGCONT)
    await execution.write_stdin(b"end\n")
    assert (await follow(execution)).stdout == b"begun\nend\n"


async def test_a_call_that_waits_behind_a_longer_one_does_not_cost_the_sandbox(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's patience with the guest begins when the guest may begin."""
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", -600)
    loop = asyncio.get_running_loop()
    box = await lab.box()
    long = await box.open_python("input()", stdin=True, timeout_s=3000)
    await until(lambda: box.record.active_executions == 1)
    second = await box.open_python("input()", stdin=True, timeout_s=600.8)
    third = await box.open_python("print('third')", timeout_s=600.8)
    other = await box.open_shell("read line", stdin=True, timeout_s=3000)
    begun_at = loop.time()
    await until(lambda: loop.time() > begun_at + 0.9)
    await other.write_stdin(b"\n")  # what ends elsewhere says nothing
    assert (await other.ended).verdict is Verdict.EXITED
    assert lab.sandboxes.get(box.id).state is SandboxState.RUNNING

    await long.write_stdin(b"\n")
    await long.ended
    await second.write_stdin(b"\n")
    assert (await second.ended).verdict is Verdict.EXITED
    assert printed(await third.collect()) == "third\n"


async def test_patience_with_the_guest_begins_when_it_may_begin_with_a_call(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    box = await lab.box()
    long = await box.open_python("input()", stdin=True, timeout_s=3000)
    second = await box.open_python("input()", stdin=True, timeout_s=600)
    opened_at = loop.time()
    await until(lambda: loop.time() > opened_at + 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(overdue, "TIMEOUT_MARGIN_S", -599.99)
        lab.executions._overdue.look(second)
    assert lab.sandboxes.get(box.id).state is SandboxState.RUNNING
    await long.write_stdin(b"\n")
    await long.ended
    lab.executions._overdue.look(second)  # it is its turn, but it had no time yet
    assert lab.sandboxes.get(box.id).state is SandboxState.RUNNING
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", -600)
    lab.executions._overdue.look(second)
    assert (await second.ended).verdict is Verdict.SANDBOX_LOST


async def test_an_execution_that_a_guest_does_not_end_costs_the_sandbox_whatever_else_ends_in_it(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", -600)
    box = await lab.box()
    endless = await box.open_shell("sleep 600", timeout_s=600.3)
    in_line = await box.open_python("input()", stdin=True, timeout_s=3000)
    while not endless.ended.done():
        others = [await box.open_shell("true", timeout_s=3000) for _ in range(3)]
        for other in others:
            await other.ended
    finished = await in_line.ended
    assert finished.verdict is Verdict.SANDBOX_LOST
    assert "did not end an execution at its timeout" in finished.message
    await until(lambda: not lab.runtime._containers)


async def test_a_sandbox_that_somebody_pauses_is_not_given_up_for_its_timeouts(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(watching, "PING_PATIENCE_S", 0.1)
    monkeypatch.setattr(overdue, "TIMEOUT_MARGIN_S", 0.9)
    status = lab.runtime.status

    async def paused(container_id: str) -> ContainerStatus | None:
        found = await status(container_id)
        return replace(found, paused=True) if found is not None else None

    loop = asyncio.get_running_loop()
    box = await lab.box()
    with monkeypatch.context() as patch:
        patch.setattr(lab.runtime, "status", paused)
        execution = await box.open_shell("echo begun; exec sleep 600", timeout_s=0.2)
        await first_output(execution)
        os.kill(box.guest_pid(), signal.SIGSTOP)
        paused_at = loop.time()
        await until(lambda: loop.time() > paused_at + 1.4)
        assert lab.sandboxes.get(box.id).state is SandboxState.PAUSED
        os.kill(box.guest_pid(), signal.SIGCONT)
        assert (await execution.ended).verdict is Verdict.TIMEOUT
    await until(lambda: lab.sandboxes.get(box.id).state is SandboxState.RUNNING)
    assert printed(await box.shell("echo well")) == "well\n"
