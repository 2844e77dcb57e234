"""Very many executions in one sandbox, and cancelling at every moment of one's life."""

from __future__ import annotations

import asyncio

import pytest

from enclaved.core.retention import RECORDS_PER_SANDBOX
from enclaved.errors import LimitReached
from enclaved.model import STDOUT, Retention, SignalSender, ToolCall, Verdict
from tests.service.guest.laboratory import Laboratory, follow, laboratory, printed, until

AT_ONCE = 200
IN_ALL = 10_000


async def test_ten_thousand_executions_in_one_sandbox_leave_no_more_than_the_last_records(lab: Laboratory) -> None:
    box = await lab.box()

    async def some(first: int) -> None:
        for number in range(first, IN_ALL, 10):
            result = await box.python(f"print({number})", execution_id=f"run-{number}")
            assert printed(result) == f"{number}\n"

    async with asyncio.TaskGroup() as tasks:
        for first in range(10):
            tasks.create_task(some(first))
    assert len(lab.executions._by_id) == RECORDS_PER_SANDBOX
    assert len(box.record.running_link().handles) == RECORDS_PER_SANDBOX
    assert lab.executions.active == 0
    assert lab.metrics.value("enclaved_executions_total", tool="other", verdict="EXITED") == IN_ALL
    ids = [execution.id for execution in lab.executions.list(page_size=1000).executions]
    assert len(ids) == RECORDS_PER_SANDBOX


async def test_two_hundred_executions_run_at_once_and_no_more() -> None:
    async with laboratory(most=AT_ONCE) as lab:
        box = await lab.box()
        made = [await box.open_shell("read line; echo $line", stdin=True) for _ in range(AT_ONCE)]
        with pytest.raises(LimitReached):
            await box.open_shell("true")
        stories = [asyncio.create_task(follow(execution)) for execution in made]
        for number, execution in enumerate(made):
            await execution.write_stdin(b"%d\n" % number)
        for number, story in enumerate(stories):
            assert (await story).stdout == b"%d\n" % number
        assert printed(await box.shell("echo well")) == "well\n"


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("isolated", [False, True])
async def test_a_cancel_at_any_moment_ends_it_truly(lab: Laboratory, steps: int, isolated: bool) -> None:
    """Cancels after more and more turns of the event loop: before it began, in between, and after its end."""
    box = await lab.box()
    execution = await box.open_python("print('x')", isolated=isolated)
    for _ in range(steps * 3):
        await asyncio.sleep(0)
    execution.cancel("a caller")
    finished = await execution.ended
    assert finished.verdict in (Verdict.CANCELLED, Verdict.EXITED)
    assert finished.cancelled_by == ("a caller" if finished.verdict is Verdict.CANCELLED else "")
    assert printed(await box.python("print('well')")) == "well\n"


async def test_a_cancel_names_who_it_was_and_kills_the_whole_tree(lab: Laboratory) -> None:
    box = await lab.box()
    execution = await box.open_shell("sleep 600 & echo $! $$; wait")

    async def cancel(story: object) -> None:
        execution.cancel("its client")

    story = await follow(execution, on_output=cancel)
    assert story.finished is not None
    assert (story.finished.verdict, story.finished.cancelled_by) == (Verdict.CANCELLED, "its client")
    assert story.finished.signal_sender is SignalSender.DAEMON
    assert await box.survivors(story.stdout) == []


async def test_detached_executions_go_on_and_keep_their_last_output(lab: Laboratory) -> None:
    box = await lab.box()
    call = ToolCall(
        box.id,
        "python_executor",
        {"code": "import sys\nsys.stdout.write('x' * 100_000 + 'end')", "isolated": True},
        detach=True,
        detach_grace_s=0.0,
        keep_last_bytes=4096,
        execution_id="mine",
    )
    assert (await lab.executions.run(call)).finished is None
    info = await lab.executions.wait("mine", box.id)
    assert info.finished is not None
    assert info.finished.verdict is Verdict.EXITED
    story = await follow(lab.executions.get("mine"))
    assert story.stdout.endswith(b"end")
    assert len(story.stdout) <= 4096
    assert story.offsets[STDOUT] == 100_003


async def test_a_reader_that_never_reads_holds_up_nobody_where_the_last_output_is_kept(lab: Laboratory) -> None:
    box = await lab.box()
    execution = await box.open_shell("head -c 20000000 /dev/zero", retention=Retention.KEEP_LAST)
    async with execution.attach() as events:
        await anext(events)
        finished = await execution.ended
        assert finished.verdict is Verdict.EXITED
        assert finished.bytes_total[1] == 20_000_000
    await until(lambda: not execution.handle.readers)
