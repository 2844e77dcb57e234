"""One execution in a real guest against a model: whatever is done to it, in any order, bytes and verdict are right."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from enclaved.core.execution import Execution
from enclaved.errors import OffsetReleased
from enclaved.model import STDERR, STDOUT, Event, Finished, Notice, NoticeKind, Output, Started, Verdict
from tests.cases import cases
from tests.service.guest.laboratory import PATIENCE_S, Box, laboratory

EXAMPLES_AT_ONCE = 15
STEPS = 20
MOST_BYTES = 1024 * 1024
"""Less than a journal holds, so that the program never waits for its readers."""
CHANNELS = (STDOUT, STDERR)
TERM, HANDLED = 15, 10
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
lines = open(0, "rb", buffering=0)
rest = b""
while True:
    line, newline, after = rest.partition(b"\\n")
    if not newline:
        data = os.read(0, 65536)
        if not data:
            os._exit(0)
        rest += data
        continue
    rest = after
    what, first, second = line.split()
    if what == b"exit":
        os._exit(int(first))
    data = (second + b".") * (int(first) // (len(second) + 1) + 1)
    data, channel = data[:int(first)], 1 + int(second) % 2
    while data:
        data = data[os.write(channel, data):]
"""


@dataclass
class Follower:
    """One who is attached, and what it has seen."""

    stack: AsyncExitStack
    events: Any
    observes: bool
    position: dict[int, int] = field(default_factory=dict)
    asked: asyncio.Task[Event] | None = None
    finished: Finished | None = None


class Lives(RuleBasedStateMachine):
    """The lives that one execution can have."""

    box: Box
    loop: asyncio.AbstractEventLoop

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does something in the loop of the daemon's core."""
        doing: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return doing.result(PATIENCE_S * 2)

    @initialize(timeout_s=st.sampled_from([60.0, 60.0, 60.0, 0.5]))
    def start(self, timeout_s: float) -> None:
        self.told = dict.fromkeys(CHANNELS, b"")
        self.released = dict.fromkeys(CHANNELS, 0)
        self.followers: list[Follower] = []
        self.commands = 0
        self.chunks: list[tuple[int, bytes]] = []
        self.sent = 0
        self.over = self.killed = False
        self.allowed: set[tuple[Verdict, int | None]] = {(Verdict.TIMEOUT, None)} if timeout_s < 1 else set()
        self.killed = timeout_s < 1
        command = ["/usr/bin/python3", "-c", PROGRAM]
        self.execution: Execution = self.do(
            self.box.open("shell_executor", {"command": command}, timeout_s=timeout_s, stdin=True)
        )
        self.attach(0, observes=False)

    def say(self, text: str) -> None:
        data = text.encode()
        self.chunks.append((self.sent, data))
        self.sent += len(data)
        self.do(self.execution.write_stdin(data, self.chunks[-1][0]))

    @precondition(lambda self: not self.over)
    @rule(size=st.sampled_from([1, 5, 1000, 70_000]))
    def write(self, size: int) -> None:
        if sum(map(len, self.told.values())) + size > MOST_BYTES:
            return
        self.commands += 1
        word = b"%d." % self.commands
        self.told[1 + self.commands % 2] += (word * (size // len(word) + 1))[:size]
        self.say(f"write {size} {self.commands}\n")

    @precondition(lambda self: self.chunks and not self.over)
    @rule(data=st.data())
    def repeat_input(self, data: st.DataObject) -> None:
        offset, chunk = data.draw(st.sampled_from(self.chunks))
        self.do(self.execution.write_stdin(chunk, offset))

    @precondition(lambda self: not self.over)
    @rule(code=st.sampled_from([0, 3, 124, 137]))
    def exit(self, code: int) -> None:
        self.over = True
        self.allowed.add((Verdict.EXITED, code))
        self.say(f"exit {code} 0\n")

    @precondition(lambda self: not self.over)
    @rule()
    def end_input(self) -> None:
        self.over = True
        self.allowed.add((Verdict.EXITED, 0))
        self.do(self.execution.end_input())

    @rule(number=st.sampled_from([HANDLED, TERM]))
    def signal(self, number: int) -> None:
        if number == TERM:
            self.over = self.killed = True
            self.allowed.add((Verdict.SIGNALED, TERM))
        else:  # it may not handle it yet
            self.killed = True
            self.allowed.add((Verdict.SIGNALED, HANDLED))
        self.loop.call_soon_threadsafe(self.execution.signal, number)

    @rule()
    def cancel(self) -> None:
        self.over = self.killed = True
        self.allowed.add((Verdict.CANCELLED, None))
        self.loop.call_soon_threadsafe(self.execution.cancel, "a test")

    @rule()
    def lose_the_connection(self) -> None:
        async def lose() -> None:
            link = self.box.record.link
            assert link is not None
            if link._peer is not None:
                link._peer.abort()
            await link.wait_connected()

        self.do(lose())

    @precondition(lambda self: len(self.followers) < 3)
    @rule(share=st.floats(0, 1), observes=st.booleans())
    def attach(self, share: float, observes: bool) -> None:
        seen = {c: max([f.position.get(c, 0) for f in self.followers], default=0) for c in CHANNELS}
        offsets = {channel: int(seen[channel] * share) for channel in CHANNELS}
        stack = AsyncExitStack()

        async def enter() -> Any:
            return await stack.enter_async_context(self.execution.attach(offsets, observe=observes))

        try:
            events = self.do(enter())
        except OffsetReleased:
            assert any(offsets[channel] < self.released[channel] for channel in CHANNELS)
            return
        self.followers.append(Follower(stack, events, observes, dict(offsets)))
        if not observes:
            self.release(offsets)

    def release(self, offsets: dict[int, int]) -> None:
        for channel, offset in offsets.items():
            self.released[channel] = max(self.released[channel], offset)

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), count=st.integers(1, 10))
    def follow(self, data: st.DataObject, count: int) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        for _ in range(count):
            if not self.do(self.step(follower, 0.01)):
                break

    async def step(self, follower: Follower, patience_s: float) -> bool:
        """Takes the next event, if it comes in time."""
        if follower.finished is not None:
            return False
        if not follower.observes:
            self.release(follower.position)  # to ask for the next one says that those before were delivered
        if follower.asked is None:
            follower.asked = asyncio.ensure_future(anext(follower.events))
        done, _ = await asyncio.wait([follower.asked], timeout=patience_s)
        if not done:
            return False
        event, follower.asked = follower.asked.result(), None
        self.check(follower, event)
        return True

    def check(self, follower: Follower, event: Event) -> None:
        """An event may be nothing but what the model allows."""
        match event:
            case Started():
                for channel, offset in event.offsets.items():
                    assert offset == follower.position[channel]
            case Output():
                position, end = follower.position[event.channel], event.offset + len(event.data)
                assert event.data
                assert event.offset == position, "a gap that nobody told of, or something twice"
                assert event.data == self.told[event.channel][event.offset : end]
                follower.position[event.channel] = end
            case Notice(kind=NoticeKind.GAP):
                assert event.channel is not None
                assert event.offset == follower.position[event.channel]
                follower.position[event.channel] += event.length_bytes
                assert follower.position[event.channel] <= self.released[event.channel], "lost, and not released"
            case Finished():
                follower.finished = event

    @precondition(lambda self: self.followers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        self.followers.remove(follower)
        self.do(self.close(follower))

    async def close(self, follower: Follower) -> None:
        if follower.asked is not None:
            follower.asked.cancel()
            await asyncio.wait([follower.asked])
        await follower.stack.aclose()

    def teardown(self) -> None:
        if not hasattr(self, "execution"):  # it did not even start
            return
        try:
            if not self.over:
                self.end_input()
            finished = self.do(self.ended())
            self.check_end(finished)
            for follower in self.followers:
                while self.do(self.step(follower, PATIENCE_S)):
                    pass
                assert follower.finished == finished
                assert follower.position == {c: finished.bytes_total[c] for c in CHANNELS}
            self.attach_after_the_end(finished)
        finally:
            for follower in self.followers:
                self.do(self.close(follower))
            self.followers.clear()

    async def ended(self) -> Finished:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.execution.ended)

    def check_end(self, finished: Finished) -> None:
        """The verdict is one of those that were asked for, and the output is all, or what there was until a kill."""
        told = (finished.verdict, finished.exit_code if finished.signal is None else finished.signal)
        without = (finished.verdict, None)
        assert told in self.allowed or without in self.allowed, (finished, self.allowed)
        for channel in CHANNELS:
            total, expected = finished.bytes_total[channel], len(self.told[channel])
            assert total <= expected
            assert total == expected or self.killed

    def attach_after_the_end(self, finished: Finished) -> None:
        """Who comes after the end has what is kept, and the same end."""
        seen = {channel: finished.bytes_total[channel] for channel in CHANNELS}
        late = Follower(AsyncExitStack(), None, True, seen)

        async def look() -> None:
            late.events = await late.stack.enter_async_context(self.execution.attach(dict(seen), observe=True))
            while await self.step(late, PATIENCE_S):
                pass
            await late.stack.aclose()

        self.do(look())
        assert late.finished == finished


@contextmanager
def a_box() -> Iterator[tuple[Box, asyncio.AbstractEventLoop]]:
    """A sandbox whose core runs on a thread of its own, since a state machine is not asynchronous."""
    ready: Future[tuple[Box, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        over = asyncio.Event()
        async with laboratory() as lab:
            ready.set_result((await lab.box(), asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    box, loop, over = ready.result(PATIENCE_S)
    try:
        yield box, loop
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)


@pytest.mark.timeout(3000)
def test_an_execution_has_no_life_that_its_model_does_not_allow() -> None:
    limits = settings(
        max_examples=EXAMPLES_AT_ONCE,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for _ in range(cases(1, 300)):
        with a_box() as (box, loop):
            run_state_machine_as_test(type("TheseLives", (Lives,), {"box": box, "loop": loop}), settings=limits)
