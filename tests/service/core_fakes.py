"""Small stand-ins for the core, for tests of the edge alone: they record what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from enclaved import model
from enclaved.errors import ContextNotFound, ExecutionNotFound, SandboxNotFound

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)

SPEC = model.SandboxSpec(
    image="python:3.11-slim",
    memory_limit_bytes=512 * 2**20,
    cpu_limit=1.0,
    pids_limit=256,
    working_dir_size_bytes=128 * 2**20,
    tmp_size_bytes=64 * 2**20,
    shm_size_bytes=16 * 2**20,
    working_dir="/sandbox",
    env_vars={},
    tools=None,
    timeout_s=30.0,
    timeout_max_s=3600.0,
    ttl_s=86400.0,
    remove_on_exit=True,
)

BOX = model.Sandbox(
    id="box",
    state=model.SandboxState.RUNNING,
    state_reason="",
    spec=SPEC,
    adjustments=(),
    labels={},
    created_at=MOMENT,
    updated_at=MOMENT,
    expires_at=MOMENT,
    image_id="sha256:" + "0" * 64,
    active_executions=0,
    uid=1_900_000_000,
)


EXECUTION = model.ExecutionInfo(
    id="run",
    sandbox_id="box",
    tool="python_executor",
    created_at=MOMENT,
    timeout_s=30.0,
    context="default",
    detach=False,
    readers=2,
    awaiting_input=True,
    terminal=False,
    finished=None,
)


@dataclass
class FakeSandboxes:
    """Knows one sandbox, ``box``. Raises ``error`` if it is set."""

    error: BaseException | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def create(
        self,
        request: model.SandboxRequest,
        *,
        sandbox_id: str = "",
        labels: Mapping[str, str] = model.EMPTY,
        request_id: str = "",
    ) -> model.Sandbox:
        self._note("create", request, sandbox_id, dict(labels), *([request_id] if request_id else []))
        return BOX

    def get(self, sandbox_id: str) -> model.Sandbox:
        self._note("get", sandbox_id)
        if sandbox_id != "box":
            raise SandboxNotFound(sandbox_id)
        return BOX

    def list(
        self,
        *,
        wanted: model.SandboxFilter | None = None,
        page_size: int,
        page_token: str,
    ) -> model.SandboxPage:
        self._note("list", wanted, page_size, page_token)
        return model.SandboxPage((BOX,), "next", 17)

    def history(self, sandbox_id: str) -> tuple[model.StateChange, ...]:
        return (model.StateChange(MOMENT, model.SandboxState.RUNNING, "why", model.Cause.REQUEST),)

    async def watch(
        self, revision: int, wanted: model.SandboxFilter, heartbeat_s: float
    ) -> AsyncGenerator[model.SandboxEvent | model.Bookmark]:
        self._note("watch", revision, wanted, heartbeat_s)
        yield model.Bookmark(revision)
        stopped = replace(BOX, state=model.SandboxState.STOPPED)
        boxes = {
            model.SandboxEventKind.CREATED: BOX,
            model.SandboxEventKind.CHANGED: stopped,
            model.SandboxEventKind.DELETED: stopped,
        }
        for number, (kind, box) in enumerate(boxes.items(), revision + 1):
            yield model.SandboxEvent(number, kind, MOMENT, model.Cause.IDLE, box, BOX.state, {})

    async def start(self, sandbox_id: str) -> model.Sandbox:
        self._note("start", sandbox_id)
        return BOX

    async def stop(self, sandbox_id: str) -> model.Sandbox:
        self._note("stop", sandbox_id)
        return BOX

    async def pause(self, sandbox_id: str) -> model.Sandbox:
        self._note("pause", sandbox_id)
        return BOX

    async def resume(self, sandbox_id: str) -> model.Sandbox:
        self._note("resume", sandbox_id)
        return BOX

    async def update(self, sandbox_id: str, update: model.SandboxUpdate) -> model.Sandbox:
        self._note("update", sandbox_id, update)
        return BOX

    async def delete(self, sandbox_id: str, *, wait: bool = True) -> None:
        self._note("delete", sandbox_id, wait)

    def tools(self, sandbox_id: str = "") -> tuple[model.ToolDescription, ...]:
        self._note("tools", sandbox_id)
        return tuple(model.ToolDescription(name, (), name, {"type": "function"}) for name in ("shell", "python"))


class FakeExecution:
    """An execution that tells ``events`` (fed by the test) until it told a `Finished`."""

    def __init__(self, execution_id: str = "run") -> None:
        self.id = execution_id
        self.events: asyncio.Queue[model.Event] = asyncio.Queue()
        self.attached: list[tuple[dict[int, int], bool]] = []
        self.sampled_every: list[float | None] = []
        self.left = asyncio.Event()
        self.refuses: BaseException | None = None
        self.received: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.writing = 0

    @asynccontextmanager
    async def attach(
        self,
        offsets: Mapping[int, int] | None = None,
        *,
        observe: bool = False,
        stats_interval_s: float | None = None,
        follower: object = None,
    ) -> AsyncIterator[AsyncIterator[model.Event]]:
        if self.refuses is not None:
            raise self.refuses
        self.attached.append((dict(offsets or {}), observe))
        self.sampled_every.append(stats_interval_s)
        try:
            yield self._follow()
        finally:
            self.left.set()

    async def _follow(self) -> AsyncIterator[model.Event]:
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, model.Finished):
                return

    async def write_stdin(self, data: bytes, offset: int | None = None) -> None:
        self.writing += 1
        assert self.writing == 1, "the edge must not write twice at once"
        await self.received.put(("stdin", data, offset))
        await self.may_read.wait()
        self.writing -= 1

    async def end_input(self) -> None:
        await self.received.put(("end",))

    async def acknowledge(self, offsets: Mapping[int, int], follower: object = None) -> None:
        self.received.put_nowait(("acknowledge", dict(offsets)))

    def cancel(self, by: str) -> None:
        self.received.put_nowait(("cancel", by))

    def signal(self, number: int, *, leader_only: bool = False) -> None:
        self.received.put_nowait(("signal", number, leader_only))

    def resize(self, size: model.TerminalSize) -> None:
        self.received.put_nowait(("resize", size))

    def info(self) -> model.ExecutionInfo:
        return EXECUTION


@dataclass
class FakeExecutions:
    """Knows one execution. Raises ``error`` if it is set."""

    execution: FakeExecution = field(default_factory=FakeExecution)
    error: BaseException | None = None
    opened: list[model.ToolCall] = field(default_factory=list)
    ran: list[model.ToolCall] = field(default_factory=list)
    listed: list[tuple[Any, ...]] = field(default_factory=list)
    running: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once `run` was called."""
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    """`run` waits for it if the tool is called ``slow``."""

    async def open(self, call: model.ToolCall) -> FakeExecution:
        self.opened.append(call)
        if self.error is not None:
            raise self.error
        return self.execution

    def get(self, execution_id: str, sandbox_id: str = "") -> FakeExecution:
        if execution_id != self.execution.id:
            raise ExecutionNotFound(execution_id)
        return self.execution

    def list(
        self, *, sandbox_id: str = "", running: bool | None = None, page_size: int = 0, page_token: str = ""
    ) -> model.ExecutionPage:
        self.listed.append((sandbox_id, running, page_size, page_token))
        return model.ExecutionPage((EXECUTION,), "next")

    async def wait(self, execution_id: str, sandbox_id: str = "", wait_s: float = 60.0) -> model.ExecutionInfo:
        self.listed.append((execution_id, sandbox_id, wait_s))
        finished = model.Finished(model.Verdict.EXITED, exit_code=0)
        return replace(self.get(execution_id, sandbox_id).info(), finished=finished)

    async def run(self, call: model.ToolCall) -> model.RunResult:
        self.ran.append(call)
        self.running.set()
        if self.error is not None:
            raise self.error
        if call.tool == "slow":
            await self.may_end.wait()
        return model.RunResult("run", b"out\xff", b"err", (), model.Finished(model.Verdict.EXITED, exit_code=3))


@dataclass
class FakeContexts:
    """Has the contexts that were opened."""

    names: list[str] = field(default_factory=lambda: ["second", "default"])
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def _context(self, sandbox_id: str, name: str) -> model.ContextInfo:
        if name not in self.names:
            raise ContextNotFound(name, sandbox_id)
        return model.ContextInfo(name, sandbox_id, MOMENT, 3, "run", 1, True)

    async def open(self, sandbox_id: str, name: str) -> model.ContextInfo:
        self.asked.append(("open", sandbox_id, name))
        self.names.append(name)
        return self._context(sandbox_id, name)

    async def list(self, sandbox_id: str) -> tuple[model.ContextInfo, ...]:
        self.asked.append(("list", sandbox_id))
        return tuple(self._context(sandbox_id, name) for name in self.names)

    async def close(self, sandbox_id: str, name: str) -> None:
        self.asked.append(("close", sandbox_id, name))
        self._context(sandbox_id, name)

    async def reset(self, sandbox_id: str, name: str) -> model.ContextInfo:
        self.asked.append(("reset", sandbox_id, name))
        return self._context(sandbox_id, name)


class FakeFiles:
    """Holds one file."""

    def __init__(self) -> None:
        self.content = b""
        self.asked: list[tuple[Any, ...]] = []

    @asynccontextmanager
    async def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append(("read", sandbox_id, path, offset, length))

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(self.content), 65536):
                yield self.content[start : start + 65536]

        yield chunks()

    async def write(
        self,
        sandbox_id: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int = 0o644,
        create_parents: bool = False,
        upload_id: str = "",
        offset: int = 0,
    ) -> int:
        self.asked.append(("write", sandbox_id, path, mode, create_parents))
        content = b"".join([chunk async for chunk in chunks])
        self.content = content
        return len(content)


@dataclass
class FakePools:
    """Knows one pool, ``pool``, with the member ``box``. Raises ``error`` if it is set."""

    error: BaseException | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    status: model.PoolStatus = field(
        default_factory=lambda: model.PoolStatus(
            id="pool",
            origin=model.PoolOrigin.OPERATOR,
            plan=model.PoolPlan(2, model.SandboxRequest(image="x:1", pids_limit=64), {"team": "a"}, preload=("json",)),
            members=(model.PoolMember(0, "box", model.MemberState.IDLE, 1.5, 2.5, 3),),
            waiting=4,
            counters=model.PoolCounters(runs=5),
            trouble="no image",
            created_at=MOMENT,
        )
    )

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def initialize(self, plan: model.PoolPlan, *, pool_id: str = "") -> model.PoolInfo:
        self._note("initialize", plan, pool_id)
        return model.PoolInfo("pool", ("box", "box-2"))

    def get(self, pool_id: str) -> model.PoolStatus:
        self._note("get", pool_id)
        return self.status

    def list(self) -> tuple[model.PoolStatus, ...]:
        return (self.status,)

    async def update(self, pool_id: str, change: model.PoolChange) -> model.PoolStatus:
        self._note("update", pool_id, change)
        return self.status

    async def claim(self, pool_id: str, wish: model.ClaimWish, wait_timeout_s: float) -> model.Claimed:
        self._note("claim", pool_id, wish, wait_timeout_s)
        return model.Claimed(BOX, 0.5, 0.25)

    def leases(self, pool_id: str, *, page_size: int, page_token: str) -> model.LeasePage:
        self._note("leases", pool_id, page_size, page_token)
        lease = model.Lease(
            number=7,
            pool_id="pool",
            slot=1,
            sandbox_id="box",
            kind=model.LeaseKind.RUN,
            execution_id="run",
            tool="python_executor",
            verdict=model.Verdict.EXITED,
            created_at=MOMENT,
            waited_s=0.5,
            held_s=1.5,
            reset_s=0.25,
            outcome=model.LeaseOutcome.CLEAN,
            proof=model.ResetProof(processes_killed=3),
        )
        return model.LeasePage((lease,), "7")

    async def run(self, pool_id: str, call: model.ToolCall, wait_timeout_s: float) -> tuple[str, model.RunResult]:
        self._note("run", pool_id, call, wait_timeout_s)
        finished = model.Finished(model.Verdict.EXITED, exit_code=0)
        return "box", model.RunResult("run", b"out", b"", (), finished)

    async def delete(self, pool_id: str) -> None:
        self._note("delete", pool_id)


@dataclass
class FakeImages:
    """Pulls in two steps. Raises ``error`` after the first if it is set."""

    error: BaseException | None = None
    asked: list[str] = field(default_factory=list)

    async def pull(self, image: str) -> AsyncGenerator[model.PullProgress]:
        self.asked.append(image)
        yield model.PullProgress("0123456789ab", "Downloading", 5, 10)
        if self.error is not None:
            raise self.error
        yield model.PullProgress(status="Image is on the engine", image_id="sha256:" + "0" * 64)


class FakeSystem:
    """Describes a daemon."""

    async def info(self) -> model.SystemInfo:
        return model.SystemInfo("1.2.3", MOMENT, True, model.EngineInfo("docker", "20.10", True, 1), 1, 2, 3)
