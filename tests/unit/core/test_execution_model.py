"""The life of executions against a model: whatever happens in whatever order, each byte and each end comes once.

The guest here is a small model of the real one. Connections drop, the daemon is killed and starts anew from what is
written down, clients leave and come back, and ids are used again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.core.execution import Execution
from enclaved.errors import EnclaveError, ExecutionNotFound, GuestUnavailable
from enclaved.model import Finished, Output, Started, Verdict
from tests.unit.agent.scripted import HELLO
from tests.unit.core.scripted import World

IDS = ("a", "b", "c")
TURNS = 30


@dataclass
class Program:
    """An execution in the guest."""

    name: str
    output: bytearray = field(default_factory=bytearray)
    released: int = 0
    report: dict[str, Any] | None = None
    readers: dict[int, list[int]] = field(default_factory=dict)
    """Where each reader stands, and its credit."""


class Guest:
    """A model of the guest. What the daemon says waits until `hear`."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.begun: Counter[str] = Counter()
        self.world: World | None = None
        self.heard = FrameDecoder()
        self.waiting: list[dict[str, Any]] = []
        self.is_slow = False

    def connect(self, world: World) -> None:
        """Greets, and says what it holds."""
        self.world, self.heard, self.waiting = world, FrameDecoder(), []
        self.say(**HELLO)
        for program in self.programs.values():
            program.readers.clear()
            self.say("holds", execution=program.name, state="ended" if program.report else "running")
            if program.report:
                self.say(**program.report)
        self.say("ready")

    def disconnect(self) -> None:
        """The connection is gone, with what was on its way."""
        if self.world is not None:
            peer: Any = self
            self.world.link.on_gone(peer)
            self.world = None

    def write(self, data: bytes) -> None:
        """Takes what the daemon sends."""
        self.waiting += [header for header, _ in self.heard.feed(data)]

    def abort(self) -> None:
        self.disconnect()

    def say(self, kind: str = "", payload: bytes = b"", **fields: Any) -> None:
        """Says a frame to the daemon, if it is there."""
        if self.world is not None:
            header = {"type": kind, **fields} if kind else fields
            ((decoded, data),) = FrameDecoder().feed(encode_frame(header, payload))
            peer: Any = self
            self.world.link.on_frame(peer, decoded, data)

    def hear(self) -> None:
        """Does what the daemon has said."""
        waiting, self.waiting = self.waiting, []
        for header in waiting:
            self.do(header)
        for program in self.programs.values():
            self.pump(program)

    def do(self, header: dict[str, Any]) -> None:
        kind, name = header["type"], header.get("execution", "")
        program = self.programs.get(name)
        if kind == "run":
            if program is None:
                self.begun[name] += 1
                program = self.programs[name] = Program(name)
                if "subscribe" in header:
                    subscription = header["subscribe"]
                    program.readers[subscription["reader"]] = [0, subscription["credit_bytes"]]
        elif kind == "subscribe":
            self.subscribe(program, header)
        elif program is None:
            return
        elif kind == "credit" and header["reader"] in program.readers:
            program.readers[header["reader"]][1] += header["bytes"]
        elif kind == "unsubscribe":
            program.readers.pop(header["reader"], None)
        elif kind == "acknowledge":
            program.released = max(program.released, header["offsets"].get("1", 0))
        elif kind == "cancel":
            self.finish(program, exit_code=None, signal=9, cause="cancel")

    def subscribe(self, program: Program | None, header: dict[str, Any]) -> None:
        name, reader = header["execution"], header["reader"]
        if program is None:
            self.say("unknown", execution=name, reader=reader)
            return
        offset = header["offsets"].get("1", program.released)
        if not program.released <= offset <= len(program.output):
            self.say("released", execution=name, reader=reader, channel=1, offset=offset, first_offset=program.released)
            return
        program.readers[reader] = [offset, header["credit_bytes"]]
        self.say("subscribed", execution=name, reader=reader, offsets={"1": offset, "2": 0})

    def pump(self, program: Program) -> None:
        """Sends what credit allows, in pieces of three bytes."""
        for reader, place in list(program.readers.items()):
            while place[0] < len(program.output) and place[1] > 0:
                piece = bytes(program.output[place[0] : place[0] + 3])
                self.say("output", piece, execution=program.name, reader=reader, channel=1, offset=place[0], time_s=0.0)
                place[0] += len(piece)
                place[1] -= len(piece) + 200
            if program.report is not None and place[0] == len(program.output):
                del program.readers[reader]
                self.say("end", execution=program.name, reader=reader)

    def finish(self, program: Program, **report: Any) -> None:
        """A program ends."""
        if program.report is None:
            totals = {"1": len(program.output), "2": 0}
            told = {"type": "finished", "execution": program.name, "bytes_total": totals, **report}
            program.report = told
            self.say(**told)


@dataclass
class Client:
    """Somebody who follows one execution and comes back where it was."""

    execution: Execution
    got: bytearray = field(default_factory=bytearray)
    finished: Finished | None = None

    async def follow(self) -> None:
        offset = len(self.got)
        async with self.execution.attach({1: offset, 2: 0}) as events:
            async for event in events:
                match event:
                    case Started():
                        assert event.offsets[1] == offset
                    case Output():
                        assert event.offset == len(self.got)
                        self.got += event.data
                        await self.execution.acknowledge({1: len(self.got)})
                    case Finished():
                        assert self.finished in (None, event)
                        self.finished = event
                    case _:
                        raise AssertionError(event)


class Story:
    """What happens, step by step."""

    def __init__(self) -> None:
        self.world = World(Path("/nowhere"))
        self.guest = Guest()
        self.clients: dict[str, Client] = {}
        """By the name in the guest."""
        self.following: dict[str, asyncio.Task[None]] = {}
        self.cancelled: set[str] = set()

    async def settle(self) -> None:
        """Lets everything that can happen happen."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
            self.guest.hear()

    async def open(self, name: str) -> None:
        """A client calls, perhaps not for the first time."""
        try:
            execution = await self.world.open(execution_id=name, detach=True)
        except GuestUnavailable:
            return
        self.clients.setdefault(execution.handle.name, Client(execution))

    async def write(self, name: str) -> None:
        for program in self.running(name):
            program.output += b"%d-%s;" % (len(program.output), name.encode())

    async def end(self, name: str) -> None:
        for program in self.running(name):
            self.guest.finish(program, exit_code=len(program.output) % 200)

    async def cancel(self, name: str) -> None:
        for execution in self.known(name):
            program = self.guest.programs.get(execution.handle.name)
            if program is None or program.report is None:
                self.cancelled.add(execution.handle.name)
            execution.cancel("a caller")

    async def follow(self, name: str) -> None:
        """A client follows from where it was."""
        for execution in self.known(name):
            if execution.handle.name not in self.following:
                following = asyncio.create_task(self.clients[execution.handle.name].follow())
                self.following[execution.handle.name] = following

    async def leave(self, name: str) -> None:
        """A client is gone in the middle of something."""
        for execution in self.known(name):
            await self.part(execution.handle.name)

    async def part(self, name: str) -> None:
        following = self.following.pop(name, None)
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            if not following.cancelled():
                error = following.exception()
                assert error is None or isinstance(error, EnclaveError), error

    async def drop(self, name: str) -> None:
        """The connection is lost and comes again."""
        self.guest.disconnect()
        await self.settle()
        self.guest.connect(self.world)

    async def kill(self, name: str) -> None:
        """The daemon is killed; another one starts."""
        self.guest.disconnect()
        for followed in list(self.following):
            await self.part(followed)
        ledger = self.world.ledger
        self.world = World(Path("/nowhere"), ledger=ledger)
        for row in ledger.rows.values():
            execution = self.world.executions.adopt(self.world.record, row)
            client = self.clients.setdefault(execution.handle.name, Client(execution))
            client.execution = execution

    async def greet(self, name: str) -> None:
        """The guest comes back, if it is away."""
        if self.guest.world is None:
            self.guest.connect(self.world)

    async def turn(self, name: str) -> None:
        await asyncio.sleep(0)

    async def hear(self, name: str) -> None:
        self.guest.hear()

    def known(self, name: str) -> list[Execution]:
        try:
            return [self.world.executions.get(name)]
        except ExecutionNotFound:
            return []

    def running(self, name: str) -> list[Program]:
        return [
            program
            for program in self.guest.programs.values()
            if program.name.startswith(f"{name}:") and program.report is None
        ]

    async def conclude(self) -> None:
        """Lets all end, and compares."""
        await self.greet("")
        await self.settle()
        left = {program.name for name in IDS for program in self.running(name)}
        assert not left & self.cancelled, "a cancel was lost"
        for name in IDS:
            await self.end(name)
        await self.settle()
        for followed in list(self.following):
            await self.part(followed)
        assert set(self.guest.programs) <= {one.handle.name for one in self.world.executions._by_id.values()}
        for execution in [*self.world.executions._by_id.values()]:
            client, program = self.clients[execution.handle.name], self.guest.programs.get(execution.handle.name)
            following = asyncio.create_task(client.follow())
            await self.settle()
            assert following.done(), execution.handle.name
            following.result()
            finished = client.finished
            assert finished is not None
            assert execution.finished == finished
            if program is None:  # the daemon was killed before its job was sent for certain
                assert (finished.verdict, bytes(client.got)) == (Verdict.INTERNAL_ERROR, b"")
                continue
            assert client.got == program.output
            assert program.report is not None
            assert finished.exit_code == program.report["exit_code"]
            assert finished.verdict is (Verdict.CANCELLED if "cause" in program.report else Verdict.EXITED)
            assert finished.cancelled_by == ("a caller" if "cause" in program.report else "")
        assert set(self.guest.begun.values()) <= {1}, "something ran twice"
        assert set(self.guest.begun) <= set(self.clients), "something ran that nobody asked for"


STEPS = (
    Story.open,
    Story.write,
    Story.follow,
    Story.follow,
    Story.leave,
    Story.end,
    Story.cancel,
    Story.drop,
    Story.kill,
    Story.greet,
    Story.turn,
    Story.hear,
)


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(IDS)), max_size=40))
def test_each_byte_and_each_end_comes_once_whatever_happens(steps: list[tuple[Any, str]]) -> None:
    async def tell() -> None:
        story = Story()
        await story.greet("")
        for step, name in steps:
            await step(story, name)
        await story.conclude()

    asyncio.run(tell())
