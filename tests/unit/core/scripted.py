"""Executions in a sandbox whose guest says whatever a test wants."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from enclaved.agent.link import SOCKET_NAME, GuestLink
from enclaved.core.contexts import Contexts
from enclaved.core.execution import Execution
from enclaved.core.execution_rows import ExecutionRow
from enclaved.core.executions import Executions
from enclaved.core.record import SandboxRecord
from enclaved.errors import SandboxNotFound
from enclaved.metrics import Metrics
from enclaved.model import Event, Finished, ResourceUsage, SandboxState, ToolCall
from enclaved.runtime.base import Counters
from enclaved.tools.registry import ToolRegistry
from tests.service.core_fakes import SPEC
from tests.unit.agent.scripted import PATIENCE_S, FakeGuest


@dataclass
class Ledger:
    """Remembers what is written down."""

    rows: dict[str, ExecutionRow] = field(default_factory=dict)
    error: BaseException | None = None

    def save(self, row: ExecutionRow) -> None:
        if self.error is not None:
            raise self.error
        self.rows[row.id] = row

    def settle(self, settled: Mapping[str, Finished | None]) -> None:
        for execution_id, finished in settled.items():
            if finished is None:
                self.rows.pop(execution_id, None)
            elif execution_id in self.rows:
                self.rows[execution_id] = replace(self.rows[execution_id], finished=finished)


@dataclass
class Meters:
    """The part of a runtime that executions look at."""

    found: Counters | None = field(default_factory=lambda: Counters(0, 0))
    used: ResourceUsage | None = None

    def counters(self, container_id: str) -> Counters | None:
        return self.found

    def usage(self, container_id: str) -> ResourceUsage | None:
        return self.used


@dataclass
class Houses:
    """The part of the sandboxes that executions look at."""

    records: dict[str, SandboxRecord] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def record(self, sandbox_id: str) -> SandboxRecord:
        if sandbox_id not in self.records:
            raise SandboxNotFound(sandbox_id)
        return self.records[sandbox_id]

    def lose(self, record: SandboxRecord, why: str) -> None:
        self.lost.append(why)


@dataclass
class World:
    """A daemon's executions, and one sandbox, ``box``, with a guest that a test speaks for."""

    directory: Path
    ledger: Ledger = field(default_factory=Ledger)
    meters: Meters = field(default_factory=Meters)
    houses: Houses = field(default_factory=Houses)
    metrics: Metrics = field(default_factory=lambda: Metrics(version="0"))
    guests: list[FakeGuest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = SandboxRecord(
            id="box",
            number=1,
            spec=SPEC,
            adjustments=(),
            labels={},
            uid=1,
            directory=self.directory,
            metrics=self.metrics,
            state=SandboxState.RUNNING,
            container_id="c" * 64,
        )
        self.houses.records["box"] = self.record
        self.restart()

    def restart(self) -> None:
        """What a daemon that was killed and the next one make of it: nothing is left but what was written down."""
        link = GuestLink("box", self.directory, group_id=os.getgid(), guest_uids={os.getuid()})
        self.record.link, self.record.active_executions, self.record.counted = link, 0, None
        sandboxes: Any = self.houses
        runtime: Any = self.meters
        self.executions = Executions(
            sandboxes=sandboxes,
            tools=ToolRegistry.built_in(),
            runtime=runtime,
            metrics=self.metrics,
            most=300,
            store=self.ledger,
        )
        self.contexts = Contexts(sandboxes)

    @property
    def link(self) -> GuestLink:
        assert self.record.link is not None
        return self.record.link

    async def guest(self, *holds: dict[str, Any]) -> FakeGuest:
        """A guest that was let in; ``holds`` are frames that it says before it is ready."""
        guest = FakeGuest(*await asyncio.open_unix_connection(self.directory / SOCKET_NAME))
        self.guests.append(guest)
        guest.introduce(*holds)
        async with asyncio.timeout(PATIENCE_S):
            await self.link.wait_connected()
        return guest

    async def open(self, tool: str = "shell_executor", parameters: Any = None, **call: Any) -> Execution:
        """Starts a tool."""
        return await self.executions.open(ToolCall("box", tool, parameters or {"command": "x"}, **call))

    async def kill(self) -> None:
        """Kills the daemon: its guest loses it, and nobody says goodbye."""
        self.link.leave()
        for guest in self.guests:
            await guest.leave()
        self.guests.clear()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Makes a `World` whose link listens."""
    with tempfile.TemporaryDirectory(prefix="core", dir="/tmp") as folder:
        made = World(Path(folder) / "s")
        await made.link.listen()
        try:
            async with asyncio.timeout(PATIENCE_S * 3):
                yield made
        finally:
            await made.link.close()
            for guest in made.guests:
                await guest.leave()


def ends(guest: FakeGuest, execution: Execution, *readers: int, **report: Any) -> None:
    """Lets an execution end."""
    told = {"exit_code": 0, "attested": True, **report}
    guest.say("finished", execution=execution.handle.name, **told)
    for reader in readers:
        guest.say("end", execution=execution.handle.name, reader=reader)


def writes(
    guest: FakeGuest, execution: Execution, offset: int, data: bytes, *, reader: int = 1, channel: int = 1
) -> None:
    """Lets an execution write."""
    guest.say(
        "output", data, execution=execution.handle.name, reader=reader, channel=channel, offset=offset, time_s=0.25
    )


async def rest(events: AsyncIterator[Event]) -> list[Event]:
    """All that comes."""
    return [event async for event in events]


async def soon(awaitable: Any) -> Any:
    """Waits for what must come."""
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def until(happened: Callable[[], bool]) -> None:
    """Waits for what announces itself in no other way."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if happened():
                return
            await asyncio.sleep(0.001)
