"""Output, input and those who follow: every byte once, whoever comes, goes, reads slowly or not at all."""

from __future__ import annotations

import asyncio
import os

import pytest

from enclaved.agent.guest.limits import JOURNAL_BYTES, MAX_PAYLOAD_BYTES
from enclaved.core.executions import RUN_OUTPUT_BYTES
from enclaved.errors import ExecutionNotFound, InvalidRequest, OffsetReleased
from enclaved.model import STDERR, STDOUT, NoticeKind, Verdict
from tests.service.guest.laboratory import (
    PATIENCE_S,
    Box,
    Laboratory,
    Story,
    ended,
    first_output,
    follow,
    printed,
    sha256,
    text,
    until,
)

MIB = 1024 * 1024
# Pseudo-random, so that no piece can be taken for another, and the same on both sides.
NOISE = "import random\nrandom.seed({seed})\ndata = random.randbytes({size})\n"


def noise(size: int, seed: int = 1) -> bytes:
    scope: dict[str, bytes] = {}
    exec(NOISE.format(seed=seed, size=size), scope)
    return scope["data"]


def writes_noise(size: int, seed: int = 1) -> str:
    return NOISE.format(seed=seed, size=size) + "import sys\nsys.stdout.buffer.write(data)\nsys.stdout.flush()\n"


async def test_output_is_bytes(box: Box) -> None:
    result = await box.isolated("import os\nos.write(1, bytes(range(256)))\nos.write(2, b'\\xff\\x00')")
    assert (result.stdout, result.stderr) == (bytes(range(256)), b"\xff\x00")


async def test_stderr_can_be_merged_in_order(box: Box) -> None:
    result = await box.shell("for i in 1 2 3; do echo out$i; echo err$i >&2; done", merge_stderr=True)
    assert printed(result) == "out1\nerr1\nout2\nerr2\nout3\nerr3\n"
    assert (result.stderr, ended(result).bytes_total) == (b"", {STDOUT: 30, STDERR: 0})
    result = await box.python("import sys\nprint('out')\nprint('err', file=sys.stderr)\n1/0", merge_stderr=True)
    assert text(result.stdout).startswith("out\nerr\nTraceback")


async def test_output_comes_while_a_program_runs(box: Box) -> None:
    execution = await box.open_shell("echo ready; read line; echo $line", stdin=True)

    async def answer(story: Story) -> None:
        if story.stdout == b"ready\n":
            await execution.write_stdin(b"answer\n")

    story = await follow(execution, on_output=answer)
    assert story.stdout == b"ready\nanswer\n"
    assert [chunk.time_s for chunk in story.chunks] == sorted(chunk.time_s for chunk in story.chunks)


async def test_a_slow_reader_gets_every_byte_and_slows_only_its_own_program(box: Box) -> None:
    size = 20_000_000
    execution = await box.open_python(writes_noise(size), isolated=True)
    others = 0

    async def slowly(story: Story) -> None:
        nonlocal others
        if len(story.chunks) % 100 == 1:
            others += 1
            assert printed(await box.shell(["echo", "meanwhile"])) == "meanwhile\n"

    story = await follow(execution, on_output=slowly)
    assert sha256(story.stdout) == sha256(noise(size))
    assert story.finished is not None
    assert story.finished.bytes_total == {STDOUT: size, STDERR: 0}
    assert others > 1


async def test_a_program_waits_for_a_reader_that_acknowledges_nothing(box: Box) -> None:
    code = "import os, sys\nfor n in range(16):\n    os.write(1, bytes(1024 * 1024))\n    os.write(2, b'%d ' % n)"
    execution = await box.open_python(code, isolated=True)

    observing = asyncio.create_task(follow(execution, observe=True))
    await until(lambda: execution.handle.full_at is not None)
    assert execution.handle.full_at is not None
    assert sum(execution.handle.full_at.values()) <= JOURNAL_BYTES + MAX_PAYLOAD_BYTES
    assert not execution.ended.done()
    # Another one comes, takes it all, and lets the program go on.
    story = await follow(execution)
    assert (await observing).finished == story.finished
    assert len(story.stdout) == 16 * MIB
    assert story.stderr == b"".join(b"%d " % n for n in range(16))


async def test_an_output_limit_ends_the_program(box: Box) -> None:
    for run in (box.isolated, box.python, box.shell):
        code = "yes ''" if run == box.shell else "while True: print()"
        result = await run(code, output_limit_bytes=100_000)
        finished = ended(result)
        assert finished.verdict is Verdict.OUTPUT_LIMIT
        assert finished.message == "killed: it wrote more than its output limit"
        assert result.stdout == b"\n" * 100_000
        assert finished.bytes_total == {STDOUT: 100_000, STDERR: 0}
    for program in ("printf 123456", "printf 123; printf 456 >&2; exit 3", "printf 123456 >&2"):
        result = await box.shell(program, output_limit_bytes=5)
        assert ended(result).verdict is Verdict.OUTPUT_LIMIT
        assert len(result.stdout + result.stderr) == 5
    assert printed(await box.shell("head -c 100 /dev/zero", output_limit_bytes=100)) == "\0" * 100


@pytest.mark.parametrize("size", [0, 1, RUN_OUTPUT_BYTES - 1, RUN_OUTPUT_BYTES])
async def test_what_fits_into_one_answer_comes_in_one(box: Box, size: int) -> None:
    result = await box.isolated(writes_noise(size))
    assert sha256(result.stdout) == sha256(noise(size))
    assert ended(result).exit_code == 0


async def test_what_does_not_fit_is_continued_by_attach_with_every_byte_once(box: Box) -> None:
    size = 6 * MIB + 12345
    code = writes_noise(size) + f"import os\nos.write(2, data[:{3 * MIB}])"
    result = await box.isolated(code)
    assert result.finished is None
    assert len(result.stdout) == RUN_OUTPUT_BYTES
    execution = box.lab.executions.get(result.execution_id)
    story = await follow(execution, {STDOUT: len(result.stdout), STDERR: len(result.stderr)})
    assert sha256(result.stdout + story.stdout) == sha256(noise(size))
    assert sha256(result.stderr + story.stderr) == sha256(noise(size)[: 3 * MIB])
    assert story.finished is not None
    assert story.finished.bytes_total == {STDOUT: size, STDERR: 3 * MIB}


async def test_reading_can_be_broken_off_and_taken_up_anywhere(box: Box) -> None:
    size = 3 * MIB
    execution = await box.open_python(writes_noise(size), isolated=True)
    received = bytearray()
    pieces = 0

    async def some(story: Story) -> bool:
        return len(story.stdout) < 300_000

    while len(received) < size:
        story = await follow(execution, {STDOUT: len(received)}, on_output=some)
        received += story.stdout
        pieces += 1
    assert pieces > 5
    assert sha256(bytes(received)) == sha256(noise(size))
    story = await follow(execution, {STDOUT: size})
    assert (story.stdout, story.finished is not None) == (b"", True)


async def test_everyone_who_observes_gets_every_byte(box: Box) -> None:
    size = MIB
    execution = await box.open_python("input()\n" + writes_noise(size), isolated=True, stdin=True)
    readers = [asyncio.create_task(follow(execution, observe=True)) for _ in range(5)]
    await execution.write_stdin(b"\n")
    stories = await asyncio.gather(*readers)
    assert {sha256(story.stdout) for story in stories} == {sha256(noise(size))}


async def test_an_observer_that_is_too_slow_is_told_what_it_missed(box: Box) -> None:
    size = 12 * MIB
    execution = await box.open_python("input()\n" + writes_noise(size), isolated=True, stdin=True)
    go, story = asyncio.Event(), Story()

    async def observe() -> None:
        async with execution.attach(observe=True) as events:
            async for event in events:
                story.add(event)
                await go.wait()

    observing = asyncio.create_task(observe())
    await execution.write_stdin(b"\n")
    whole = await follow(execution)
    go.set()
    await observing
    assert sha256(whole.stdout) == sha256(noise(size))
    assert {notice.kind for notice in story.notices} == {NoticeKind.GAP}
    missed = sum(notice.length_bytes for notice in story.notices)
    assert len(story.stdout) + missed == size
    assert missed > 0
    assert story.finished == whole.finished


async def test_attaching_below_what_was_released_says_where_it_begins(box: Box) -> None:
    execution = await box.open_python(writes_noise(MIB), isolated=True)
    await follow(execution)
    with pytest.raises(OffsetReleased) as caught:
        await follow(execution, {STDOUT: 0})
    assert caught.value.channel == "stdout"
    first = caught.value.first_offset
    assert 0 < first <= MIB
    story = await follow(execution, {STDOUT: first})
    assert sha256(story.stdout) == sha256(noise(MIB)[first:])
    story = await follow(execution)  # from whatever there is
    assert story.offsets[STDOUT] == MIB


async def test_attaching_beyond_the_end_is_refused(box: Box) -> None:
    execution = await box.open_shell("echo hello")
    await execution.ended
    with pytest.raises(OffsetReleased):
        await follow(execution, {STDOUT: 7})
    assert (await follow(execution, {STDOUT: 5}, observe=True)).stdout == b"\n"
    assert (await follow(execution, {STDOUT: 6})).stdout == b""


async def test_explicit_acknowledgements_alone_release(box: Box) -> None:
    execution = await box.open_shell("head -c 600000 /dev/zero; head -c 600000 /dev/zero >&2")
    await execution.acknowledge({})
    await follow(execution)
    assert len((await follow(execution, {STDOUT: 0, STDERR: 0})).stdout) == 600_000
    await execution.acknowledge({STDOUT: 600_000, STDERR: 300_000})
    with pytest.raises(OffsetReleased):
        await follow(execution, {STDOUT: 0})
    assert len((await follow(execution, {STDOUT: 600_000, STDERR: 300_000})).stderr) == 300_000


async def test_records_are_kept_for_those_who_come_late_and_not_without_bound(lab: Laboratory) -> None:
    box = await lab.box()
    read, unread = [await box.open_shell("echo first") for _ in range(2)]
    await follow(read)
    await unread.ended
    for _ in range(257):
        await box.python("pass")
    with pytest.raises(ExecutionNotFound):
        lab.executions.get(read.id)
    assert len(lab.executions._by_id) == 256
    assert (await follow(lab.executions.get(unread.id))).stdout == b"first\n"


async def test_output_that_was_read_makes_room_for_new_output_and_unread_output_lets_it_wait(box: Box) -> None:
    """Sixteen MiB of journals is all that a sandbox has."""
    for seed in range(6):
        read = await box.open_python(writes_noise(3 * MIB, seed), isolated=True)
        assert sha256((await follow(read)).stdout) == sha256(noise(3 * MIB, seed))
    made = [await box.open_python(writes_noise(3 * MIB, seed), isolated=True) for seed in range(6)]
    for seed, execution in enumerate(made):
        assert sha256((await follow(execution)).stdout) == sha256(noise(3 * MIB, seed))


# -- input


async def test_a_megabyte_goes_through_cat(box: Box) -> None:
    data = noise(MIB)
    execution = await box.open_shell("cat", stdin=True)

    async def feed() -> None:
        await execution.write_stdin(data)
        await execution.end_input()

    feeding = asyncio.create_task(feed())
    story = await follow(execution)
    await feeding
    assert sha256(story.stdout) == sha256(data)


async def test_a_megabyte_goes_to_a_context_line_by_line(box: Box) -> None:
    execution = await box.open_python("import sys\nprint(sum(len(line) for line in sys.stdin))", stdin=True)
    for _ in range(16):
        await execution.write_stdin((b"x" * 127 + b"\n") * 512)
    await execution.end_input()
    assert printed(await execution.collect()) == f"{MIB}\n"
    assert printed(await box.python("print(repr(sys.stdin.read()))")) == "''\n"


async def test_input_that_nobody_reads_waits_and_costs_nothing_after_the_end(box: Box) -> None:
    execution = await box.open_shell("echo begun; sleep 600", stdin=True)
    await first_output(execution)
    writing = asyncio.create_task(execution.write_stdin(bytes(2 * MIB)))
    done, _ = await asyncio.wait([writing], timeout=0.1)
    assert not done
    execution.cancel("the test")
    await writing
    assert (await execution.ended).verdict is Verdict.CANCELLED
    await execution.write_stdin(b"too late")


async def test_a_program_that_closes_its_input_goes_on_without(box: Box) -> None:
    code = "exec 0<&-; mkfifo go; echo closed; read -r line < go; echo $line"
    execution = await box.open_shell(code, stdin=True)
    assert await first_output(execution) == b"closed\n"
    await execution.write_stdin(bytes(MIB))
    await execution.end_input()
    await box.shell("echo open > go")
    assert printed(await execution.collect()) == "closed\nopen\n"


async def test_input_has_offsets_so_that_nothing_is_delivered_twice(box: Box) -> None:
    execution = await box.open_shell("cat", stdin=True)
    await execution.write_stdin(b"hello ", 0)
    await execution.write_stdin(b"hello wor", 0)
    await execution.write_stdin(b"lo world", 3)
    await execution.write_stdin(b"world", 6)
    with pytest.raises(InvalidRequest, match="leaves a gap; the next byte wanted is 11"):
        await execution.write_stdin(b"!", 12)
    await execution.end_input()
    await execution.end_input()
    with pytest.raises(InvalidRequest, match="end of the input"):
        await execution.write_stdin(b"!")
    await execution.write_stdin(b"hello", 0)
    assert printed(await execution.collect()) == "hello world"


async def test_two_writers_of_the_same_bytes_deliver_them_once(box: Box) -> None:
    data = noise(MIB)
    execution = await box.open_shell("echo begun; read go < /dev/null; sha256sum", stdin=True)
    writers = [asyncio.create_task(execution.write_stdin(data, 0)) for _ in range(2)]
    await asyncio.gather(*writers)
    await execution.end_input()
    assert printed(await execution.collect()).split()[1] == sha256(data)


async def test_a_program_without_input_finds_its_end(box: Box) -> None:
    assert printed(await box.shell("cat; echo end")) == "end\n"
    result = await box.python("input()")
    assert text(result.stderr).endswith("EOFError: EOF when reading a line\n")
    execution = await box.open_shell("cat")
    with pytest.raises(InvalidRequest, match="stdin: true"):
        await execution.write_stdin(b"x")


async def test_input_may_come_before_a_program_can_read_it(box: Box) -> None:
    first = await box.open_python("input()", stdin=True)
    second = await box.open_python("print(input())", stdin=True)
    await second.write_stdin(b"early\n")
    await second.end_input()
    await first.end_input()
    assert printed(await second.collect()) == "early\n"


# -- many, and cancelled


async def test_fifty_executions_at_once_each_have_their_own_output(box: Box) -> None:
    async def one(number: int) -> str:
        run = (box.shell, box.isolated, box.python)[number % 3]
        code = f"echo {number}; sleep 0.01; echo {number}" if run == box.shell else f"print({number}); print({number})"
        return printed(await run(code))

    found = await asyncio.gather(*(one(number) for number in range(50)))
    assert found == [f"{number}\n{number}\n" for number in range(50)]


async def test_three_hundred_executions_in_a_row_leave_nothing_in_the_guest(box: Box) -> None:
    assert printed(await box.shell("echo first")) == "first\n"
    for number in range(300):
        run = (box.python, box.python, box.isolated)[number % 3]
        assert printed(await run(f"print({number})")) == f"{number}\n"
        if number == 10:
            before = len(os.listdir(f"/proc/{box.guest_pid()}/fd"))
    assert len(os.listdir(f"/proc/{box.guest_pid()}/fd")) <= before + 2
    assert len(box.children_of_guest()) <= 4


@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "context"])
async def test_cancelling_kills_what_runs_and_says_who_did_it(box: Box, isolated: bool) -> None:
    execution = await box.open_python("import time\nprint(1, flush=True)\ntime.sleep(600)", isolated=isolated)
    await first_output(execution)
    execution.cancel("a client")
    execution.cancel("another client")
    story = await follow(execution)
    assert story.finished is not None
    assert (story.finished.verdict, story.finished.message) == (Verdict.CANCELLED, "cancelled by a client")
    assert story.finished.state_preserved is (None if isolated else True)
    assert story.stdout == b"1\n"


async def test_cancelling_what_waits_in_line_leaves_the_rest_of_the_line(box: Box) -> None:
    first, second, third = [await box.open_python(f"print(input() or {n})", stdin=True) for n in (1, 2, 3)]
    second.cancel("a client")
    finished = await second.ended
    assert (finished.verdict, finished.exit_code, finished.signal) == (Verdict.CANCELLED, None, None)
    for execution in (first, third):
        await execution.write_stdin(b"\n")
    assert printed(await first.collect()) == "1\n"
    assert printed(await third.collect()) == "3\n"


async def test_cancelling_at_once_and_after_the_end_is_harmless(box: Box) -> None:
    execution = await box.open_shell("sleep 600")
    execution.cancel("a client")
    assert (await execution.ended).verdict is Verdict.CANCELLED
    execution.cancel("a client")

    execution = await box.open_shell("exit 3")
    assert (await execution.ended).exit_code == 3
    execution.cancel("a client")
    assert (await follow(execution)).finished == await execution.ended


async def test_who_detaches_leaves_the_program_running(box: Box) -> None:
    execution = await box.open_shell("echo begun; read line; echo end", stdin=True)
    await first_output(execution)
    await execution.write_stdin(b"\n")
    assert (await execution.ended).exit_code == 0


async def test_without_grace_a_program_ends_with_its_last_client(box: Box) -> None:
    execution = await box.open_shell("echo begun; sleep 600", detach_grace_s=0)
    async with execution.attach():
        await first_output(execution)
        assert not execution.ended.done()
    finished = await execution.ended
    assert finished.verdict is Verdict.CANCELLED
    assert finished.message == "cancelled by the daemon: no client was attached for the detach grace"


async def test_who_comes_back_in_time_keeps_the_program(box: Box) -> None:
    execution = await box.open_shell("echo begun; read line; echo end", stdin=True, detach_grace_s=PATIENCE_S)
    async with execution.attach():
        await first_output(execution)
    assert execution._detach is not None
    async with execution.attach() as events:
        assert execution._detach is None
        await execution.write_stdin(b"\n")
        async for _ in events:
            pass
    assert (await execution.ended).verdict is Verdict.EXITED
