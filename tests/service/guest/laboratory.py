"""A daemon's core without its edges, and sandboxes in it that a test can poke."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclaved.core.background import Background
from enclaved.core.boot import Boot, BootSettings
from enclaved.core.executions import Execution, Executions
from enclaved.core.files import Files
from enclaved.core.leftovers import Leftovers
from enclaved.core.ownership import Ownership
from enclaved.core.policy import Policy, PolicyLimits
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import DATABASE_NAME, State
from enclaved.metrics import Metrics
from enclaved.model import (
    STDERR,
    STDOUT,
    TERMINAL,
    Event,
    Finished,
    Notice,
    Output,
    RunResult,
    SandboxRequest,
    Started,
    ToolCall,
    Verdict,
)
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from enclaved.tools.registry import ToolRegistry

PATIENCE_S = 30.0
"""How long a test waits for what must happen. Reached only by a failure."""

LIST_PROCESSES = """
import json, os
found = []
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        try:
            arguments = open(f"/proc/{name}/cmdline", errors="replace").read().split(chr(0))
            status = dict(line.split(":", 1) for line in open(f"/proc/{name}/status", errors="replace"))
        except OSError:
            continue
        state, uid = status["State"].split()[0], int(status["Uid"].split()[0])
        found.append({"pid": int(name), "uid": uid, "state": state, "arguments": arguments})
print(json.dumps(found))
"""


@dataclass
class Laboratory:
    """The objects of a daemon's core."""

    runtime: SubprocessRuntime
    background: Background
    sandboxes: Sandboxes
    leftovers: Leftovers
    executions: Executions
    files: Files
    metrics: Metrics
    state_dir: Path
    state: State

    async def box(self, **request: Any) -> Box:
        """Makes a sandbox."""
        sandbox = await self.sandboxes.create(SandboxRequest(**request))
        return Box(self, sandbox.id)


@asynccontextmanager
async def laboratory(
    runtime: SubprocessRuntime | None = None, *, most: int = 100, channel: str = "auto"
) -> AsyncIterator[Laboratory]:
    """Sets a core up, and takes it down with all that it made."""
    # A short path that other users may pass: sockets have room for 107 bytes, and the guest's file is read by all.
    state_dir = Path(tempfile.mkdtemp(prefix="lab"))
    state_dir.chmod(0o711)
    runtime, background, metrics = runtime or SubprocessRuntime(), Background(), Metrics(version="0")
    tools, ownership = ToolRegistry.built_in(), Ownership.of(state_dir)
    boot = Boot(runtime, BootSettings(state_dir, may_pull=False, channel=channel), ownership, background)
    state = State.open(state_dir / DATABASE_NAME)
    sandboxes = Sandboxes(
        boot=boot,
        policy=Policy(PolicyLimits(), tools),
        tools=tools,
        background=background,
        metrics=metrics,
        table=state.sandboxes,
    )
    leftovers = Leftovers(runtime=runtime, boot=boot, ownership=ownership, sandboxes=sandboxes, metrics=metrics)
    executions = Executions(
        sandboxes=sandboxes, tools=tools, runtime=runtime, metrics=metrics, most=most, store=state.executions
    )
    files = Files(sandboxes=sandboxes, executions=executions, background=background, metrics=metrics)
    try:
        async with asyncio.timeout(PATIENCE_S * 3):
            yield Laboratory(runtime, background, sandboxes, leftovers, executions, files, metrics, state_dir, state)
    finally:
        await sandboxes.close(PATIENCE_S)
        await background.close(PATIENCE_S)
        executions.settle()
        state.close()
        await runtime.close()
        shutil.rmtree(state_dir)


@dataclass
class Box:
    """One sandbox, with short names for what tests do to it."""

    lab: Laboratory
    id: str

    @property
    def record(self) -> SandboxRecord:
        """The core's own view of the sandbox."""
        return self.lab.sandboxes.record(self.id)

    async def run(self, tool: str, parameters: Mapping[str, Any], **call: Any) -> RunResult:
        """Runs a tool to its end, or as far as one answer goes."""
        return await self.lab.executions.run(ToolCall(self.id, tool, parameters, **call))

    async def python(self, code: str, **call: Any) -> RunResult:
        """Runs Python in the sandbox's context."""
        return await self.run("python_executor", {"code": code}, **call)

    async def isolated(self, code: str, **call: Any) -> RunResult:
        """Runs Python in an interpreter of its own."""
        return await self.run("python_executor", {"code": code, "isolated": True}, **call)

    async def shell(self, command: str | list[str], **call: Any) -> RunResult:
        """Runs a command."""
        return await self.run("shell_executor", {"command": command}, **call)

    async def open(self, tool: str, parameters: Mapping[str, Any], **call: Any) -> Execution:
        """Starts a tool."""
        return await self.lab.executions.open(ToolCall(self.id, tool, parameters, **call))

    async def open_python(self, code: str, *, isolated: bool = False, **call: Any) -> Execution:
        """Starts Python."""
        return await self.open("python_executor", {"code": code, "isolated": isolated}, **call)

    async def open_shell(self, command: str, **call: Any) -> Execution:
        """Starts a command."""
        return await self.open("shell_executor", {"command": command}, **call)

    async def processes(self) -> list[dict[str, Any]]:
        """The processes there are in the sandbox, as a program in it sees them; zombies do not count."""
        result = await self.isolated(LIST_PROCESSES)
        assert text(result.stderr) == ""
        return [process for process in json.loads(result.stdout) if process["state"] not in "ZX"]

    async def survivors(self, pids: bytes) -> list[dict[str, Any]]:
        """Those of the processes, given by their numbers, that are still there."""
        wanted = {int(pid) for pid in pids.split()}
        assert wanted
        return [process for process in await self.processes() if process["pid"] in wanted]

    def guest_pid(self) -> int:
        """The guest's process id on this machine."""
        assert self.record.container_id is not None
        process = self.lab.runtime._containers[self.record.container_id].process
        assert process is not None
        return children_of(process.pid)[0] if os.getuid() == 0 else process.pid

    def children_of_guest(self) -> list[int]:
        """The guest's children on this machine, oldest first: the template, then those that wait or work."""
        return children_of(self.guest_pid())


def children_of(pid: int) -> list[int]:
    """The children of a process, oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until(happened: Callable[[], bool]) -> None:
    """Waits for what announces itself in no other way."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if happened():
                return
            await asyncio.sleep(0.002)


def text(data: bytes) -> str:
    """Decodes output."""
    return data.decode()


def ended(result: RunResult) -> Finished:
    """The end of a run that must have one."""
    assert result.finished is not None, "it still runs"
    return result.finished


def printed(result: RunResult) -> str:
    """The output of a program that must have ended well."""
    finished = ended(result)
    assert (finished.verdict, finished.exit_code) == (Verdict.EXITED, 0), (finished, result.stderr)
    return text(result.stdout)


@dataclass
class Story:
    """What an attached client saw, in order and checked: offsets follow each other, and the end comes once."""

    output: dict[int, bytearray] = field(
        default_factory=lambda: {channel: bytearray() for channel in (STDOUT, STDERR, TERMINAL)}
    )
    offsets: dict[int, int] = field(default_factory=dict)
    chunks: list[Output] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[STDERR])

    @property
    def screen(self) -> str:
        """What a terminal got."""
        return self.output[TERMINAL].decode()

    def add(self, event: Event) -> None:
        """Takes the next event."""
        assert self.finished is None, "something came after the end"
        match event:
            case Started():
                assert not self.offsets, "two beginnings"
                self.offsets = {STDOUT: 0, STDERR: 0, **event.offsets}
            case Output():
                assert event.offset == self.offsets[event.channel], "a gap or a repetition"
                self.offsets[event.channel] += len(event.data)
                self.output[event.channel] += event.data
                self.chunks.append(event)
            case Notice():
                self.notices.append(event)
                if event.channel is not None:
                    assert event.offset == self.offsets[event.channel]
                    self.offsets[event.channel] += event.length_bytes
            case Finished():
                self.finished = event


async def follow(
    execution: Execution,
    offsets: Mapping[int, int] | None = None,
    *,
    observe: bool = False,
    on_output: Callable[[Story], Awaitable[bool | None]] | None = None,
) -> Story:
    """Attaches and reads to the end, or until ``on_output`` says False."""
    story = Story()
    async with execution.attach(offsets, observe=observe) as events:
        async for event in events:
            story.add(event)
            if isinstance(event, Output) and on_output is not None and await on_output(story) is False:
                return story
    assert story.finished is not None, "the stream ended without an end"
    return story


async def first_output(execution: Execution) -> bytes:
    """Waits until a program has written something, to either channel. It stays there: nothing is acknowledged."""

    async def stop(story: Story) -> bool:
        return False

    return (await follow(execution, observe=True, on_output=stop)).chunks[0].data


def sha256(data: bytes) -> str:
    """What is compared of large outputs."""
    return hashlib.sha256(data).hexdigest()
