"""Executions and contexts from Python, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from ms_enclave import errors
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.executions import Execution
from ms_enclave.sandbox.model import (
    Channel,
    Event,
    ExecutionOptions,
    Finished,
    Notice,
    NoticeKind,
    Output,
    Started,
    StatsSample,
    TerminalSize,
    Verdict,
)

from tests.service.daemons import Running, daemon, settings_in, short_directory

PATIENCE_S = 30.0


@dataclass
class Place:
    """A daemon, and a sandbox at it."""

    daemon: Running
    sandbox: DockerSandbox


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with short_directory() as folder:
        settings = settings_in(folder)
        async with daemon(settings) as running:
            sandbox = DockerSandbox(sandbox_id="box")
            sandbox.use(GrpcTransport(f"unix:{settings.listen.unix}"), {})
            async with sandbox:
                yield Place(running, sandbox)


@pytest.fixture
def sandbox(place: Place) -> DockerSandbox:
    return place.sandbox


async def events_of(execution: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in execution]


def text(events: list[Event], channel: Channel = Channel.STDOUT) -> str:
    return b"".join(one.data for one in events if isinstance(one, Output) and one.channel is channel).decode()


async def until(execution: Execution, words: str) -> str:
    """Reads until some words came, and returns what was written."""
    said = ""
    async with asyncio.timeout(PATIENCE_S):
        while words not in said:
            event = await anext(execution)
            said += event.text if isinstance(event, Output) else ""
    return said


async def test_a_stream_takes_the_parameters_as_keywords(sandbox: DockerSandbox) -> None:
    events = await events_of(sandbox.stream("python_executor", code="print('hello')", timeout=20))
    assert isinstance(events[0], Started)
    assert events[0].created_at is not None
    assert text(events) == "hello\n"
    assert isinstance(events[-1], Finished)
    assert events[-1].verdict is Verdict.EXITED
    with pytest.raises(errors.InvalidRequest, match="not as both"):
        await anext(sandbox.stream("bash", {"command": "true"}, timeout=1))


async def test_a_program_is_talked_with(sandbox: DockerSandbox) -> None:
    code = "while True:\n    print('got', input(), flush=True)"
    parameters = {"code": code, "isolated": True}
    async with await sandbox.start_execution(
        "python_executor", parameters, options=ExecutionOptions(stdin=True)
    ) as execution:
        for word in ("one", "two"):
            await execution.write(f"{word}\n")
            assert f"got {word}" in await until(execution, word)
        execution.end_input()
        events = await events_of(execution)
    assert isinstance(events[-1], Finished)
    assert events[-1].verdict is Verdict.EXCEPTION
    assert "EOFError" in text(events, Channel.STDERR)
    with pytest.raises(errors.WrongState, match="ended"):
        await execution.write("more")


async def test_input_can_be_given_with_the_call(sandbox: DockerSandbox) -> None:
    options = ExecutionOptions(stdin="b\na\n")
    result = await sandbox.execute_tool("bash", {"command": "sort"}, options=options)
    assert result.output == "a\nb\n"
    events = await events_of(sandbox.stream("bash", command="wc -c", options=ExecutionOptions(stdin=bytes(1_000_000))))
    assert text(events).strip() == "1000000"


async def test_a_program_without_input_says_so(sandbox: DockerSandbox) -> None:
    async with await sandbox.start_execution("bash", command="sleep 60") as execution:
        with pytest.raises(errors.InvalidRequest, match="stdin=True"):
            await execution.write("x")
    with pytest.raises(errors.InvalidRequest, match="start_execution"):
        await anext(sandbox.stream("bash", command="cat", options=ExecutionOptions(stdin=True)))


async def test_a_terminal_has_its_size_and_gets_another(sandbox: DockerSandbox) -> None:
    command = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"
    options = ExecutionOptions(terminal=TerminalSize(10, 20))
    async with await sandbox.start_execution("bash", command=command, options=options) as execution:
        assert "10 20" in await until(execution, "ready")
        execution.resize(30, 40)
        events = await events_of(execution)
    assert "30 40" in text(events, Channel.TERMINAL)
    assert isinstance(events[-1], Finished)
    assert events[-1].exit_code == 3


async def test_a_signal_reaches_the_program(sandbox: DockerSandbox) -> None:
    command = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    async with await sandbox.start_execution("bash", command=command) as execution:
        await until(execution, "ready")
        await execution.signal(signal.SIGUSR1, leader_only=True)
        finished = await execution.wait(PATIENCE_S)
        assert finished is not None
        assert finished.exit_code == 7
        assert "caught" in text(await events_of(execution))
        with pytest.raises(errors.InvalidRequest, match="1 to 64"):
            await execution.signal(0)


async def test_waiting_has_a_limit_and_cancelling_an_end(sandbox: DockerSandbox) -> None:
    execution = await sandbox.start_execution("bash", command="sleep 60")
    assert await execution.wait(0) is None
    assert (await execution.info()).running
    await execution.cancel()
    finished = await execution.wait(PATIENCE_S)
    assert finished is not None
    assert finished.verdict is Verdict.CANCELLED
    assert finished.cancelled_by
    assert (await execution.info()).finished == finished


async def test_leaving_an_execution_kills_it_unless_it_is_detached(sandbox: DockerSandbox) -> None:
    async with await sandbox.start_execution("bash", command="sleep 60") as execution:
        pass
    left = await execution.wait(PATIENCE_S)
    assert left is not None
    assert left.verdict is Verdict.CANCELLED
    async with await sandbox.start_execution(
        "bash", command="sleep 60", options=ExecutionOptions(detach=True)
    ) as detached:
        pass
    assert [info.id for info in await sandbox.list_executions(running=True)] == [detached.id]
    again = await sandbox.get_execution(detached.id)
    assert (await again.info()).detach
    await again.cancel()
    assert (await again.wait(PATIENCE_S)).verdict is Verdict.CANCELLED
    assert {info.id for info in await sandbox.list_executions(running=False)} == {execution.id, detached.id}


async def test_who_comes_back_has_every_byte_once(sandbox: DockerSandbox) -> None:
    command = "for i in $(seq 1 2000); do echo line $i; done"
    first = await sandbox.start_execution("bash", command=command, options=ExecutionOptions(detach=True))
    finished = await first.wait(PATIENCE_S)
    assert finished is not None
    expected = "".join(f"line {n}\n" for n in range(1, 2001))
    assert text(await events_of(first.attach(observe=True))) == expected
    found = await sandbox.get_execution(first.id)
    assert text(await events_of(found.attach({Channel.STDOUT: 7}))) == expected[7:]


async def test_who_looks_on_takes_nothing_from_the_one_that_opened_it(sandbox: DockerSandbox) -> None:
    size = 6_000_000
    execution = await sandbox.start_execution("bash", command=f"head -c {size} /dev/zero")
    assert isinstance(await anext(execution), Started)
    looking = asyncio.create_task(events_of(execution.attach()))
    got = sum(len(event.data) for event in await events_of(execution) if isinstance(event, Output))
    assert got == size
    await looking


async def test_the_same_id_never_runs_twice(sandbox: DockerSandbox) -> None:
    options = ExecutionOptions(execution_id="mine")
    for _ in range(2):
        assert (await sandbox.execute_tool("bash", {"command": "echo x >> ran"}, options=options)).success
    execution = await sandbox.start_execution("bash", command="echo x >> ran", options=options)
    assert execution.id == "mine"
    assert await execution.wait(PATIENCE_S) is not None
    assert (await sandbox.execute_command("cat ran")).stdout == "x\n"


async def test_an_execution_is_followed_from_one_event_loop_after_the_other(place: Place) -> None:
    """Each loop takes up where the one before was; the first ones are closed by then."""
    sandbox = place.sandbox

    command = "for i in $(seq 1 9); do echo $i; done; read word; echo $word"
    execution = await sandbox.start_execution("bash", command=command, options=ExecutionOptions(stdin=True))

    async def first_lines() -> str:
        return await until(execution, "3\n")

    async def the_rest() -> str:
        await execution.write("end\n")
        return text(await events_of(execution))

    said = [await asyncio.to_thread(asyncio.run, part()) for part in (first_lines, the_rest)]
    assert "".join(said) == "1\n2\n3\n4\n5\n6\n7\n8\n9\nend\n"


async def test_a_program_shows_what_it_uses(sandbox: DockerSandbox) -> None:
    options = ExecutionOptions(stats_interval=0.05)
    code = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    async with contextlib.aclosing(
        sandbox.stream("python_executor", code=code, isolated=True, options=options)
    ) as events:
        async with asyncio.timeout(PATIENCE_S):
            async for event in events:
                if isinstance(event, StatsSample) and event.execution.cpu_user_s > 0.1:
                    break
    assert event.execution.pids >= 1
    assert event.execution.memory_bytes > 0


async def test_a_program_that_waits_for_input_says_so(sandbox: DockerSandbox) -> None:
    async with await sandbox.start_execution(
        "python_executor", code="print(input())", isolated=True, options=ExecutionOptions(stdin=True)
    ) as execution:
        async with asyncio.timeout(PATIENCE_S):
            async for event in execution:
                if isinstance(event, Notice):
                    break
        assert event.kind is NoticeKind.AWAITING_INPUT
        assert (await execution.info()).awaiting_input
        await execution.write("42\n")
        assert "42\n" in text(await events_of(execution))


async def test_contexts_keep_their_variables_apart(sandbox: DockerSandbox) -> None:
    async with await sandbox.contexts.open("one") as one:
        two = await sandbox.contexts.open("two")
        await one.execute("x = 1")
        assert (await two.execute("print('x' in globals())")).output == "False\n"
        assert (await one.execute("print(x)", options=ExecutionOptions(timeout=20))).output == "1\n"
        assert text(await events_of(one.stream("print(x + 1)"))) == "2\n"
        assert [context.name for context in await sandbox.contexts.list()] == ["one", "two"]
        await one.reset()
        assert (await one.execute("print('x' in globals())")).output == "False\n"
    await two.close()
    assert await sandbox.contexts.list() == []
    with pytest.raises(errors.NotFound):
        await sandbox.contexts.close("one")


@pytest.mark.parametrize("way", ["stream", "run"])
async def test_a_cancelled_caller_leaves_nothing_behind(sandbox: DockerSandbox, way: str) -> None:
    options = ExecutionOptions(execution_id="mine", stdin=b"")
    command = "touch begun; sleep 60"

    async def work() -> None:
        if way == "stream":
            await events_of(sandbox.stream("bash", command=command, options=options))
        else:
            await sandbox.execute_tool("bash", {"command": command}, options=options)

    task = asyncio.create_task(work())
    await sandbox.execute_command("while [ ! -e begun ]; do sleep 0.02; done")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = await (await sandbox.get_execution("mine")).wait(PATIENCE_S)
    assert ended is not None
    assert ended.verdict is Verdict.CANCELLED
