"""The sandboxes of a daemon over an engine whose containers are only names."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.leftovers import Leftovers
from enclaved.core.ownership import Ownership
from enclaved.core.policy import Policy, PolicyLimits
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import State
from enclaved.metrics import Metrics
from enclaved.model import SandboxRequest, SandboxState
from enclaved.runtime.base import ContainerRecord, NetworkRecord, Runtime
from enclaved.tools.registry import ToolRegistry

OURS, THEIRS = Ownership(b"ours"), Ownership(b"theirs")


@dataclass
class FakeRuntime:
    """Containers that are only names."""

    containers: dict[str, Mapping[str, str]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    """Raised one after the other instead of the next answers."""

    async def list_networks(self) -> list[NetworkRecord]:
        return []

    async def list_records(self) -> list[ContainerRecord]:
        self._fail()
        return [ContainerRecord(name, labels, True) for name, labels in self.containers.items()]

    async def remove(self, container_id: str) -> None:
        self._fail()
        del self.containers[container_id]

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class FakeBoot:
    """Brings containers up by writing them down."""

    runtime: FakeRuntime
    uids: set[int] = field(default_factory=set)
    failure: Exception | None = None
    old_directories_removed: int = 0
    canaries: dict[str, SandboxRecord] = field(default_factory=dict)

    @property
    def networks(self) -> FakeBoot:
        return self

    async def sweep(self) -> list[str]:
        return []

    def take_uid(self) -> int:
        uid = max(self.uids, default=1000) + 1
        self.uids.add(uid)
        return uid

    def return_uid(self, uid: int) -> None:
        self.uids.remove(uid)

    def new_directory(self) -> Path:
        return Path("/nowhere")

    def remove_old_directories(self) -> None:
        self.old_directories_removed += 1

    async def up(self, record: SandboxRecord, remaining_ttl_s: float) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        record.container_id = f"container of {record.id}"
        self.runtime.containers[record.container_id] = OURS.labels(record.id, record.uid)

    async def down(self, record: SandboxRecord) -> None:
        if record.container_id is not None:
            await self.runtime.remove(record.container_id)
            record.container_id = None

    @property
    def watching(self) -> FakeBoot:
        return self

    async def watch(self, record: SandboxRecord, on_lost: Any, seen: Any) -> None:
        await asyncio.Event().wait()


class Hall:
    """The sandboxes and everything that they hold on to."""

    def __init__(self, **limits: Any) -> None:
        tools = ToolRegistry.built_in()
        self.runtime = FakeRuntime()
        self.boot = FakeBoot(self.runtime)
        self.background = Background()
        self.metrics = Metrics(version="0")
        self.folder = tempfile.TemporaryDirectory()
        self.state = State.open(Path(self.folder.name) / "state.db")
        self.sandboxes = Sandboxes(
            boot=cast("Boot", self.boot),
            policy=Policy(PolicyLimits(**limits), tools),
            tools=tools,
            background=self.background,
            metrics=self.metrics,
            table=self.state.sandboxes,
        )
        self.leftovers = Leftovers(
            runtime=cast("Runtime", self.runtime),
            boot=cast("Boot", self.boot),
            ownership=OURS,
            sandboxes=self.sandboxes,
            metrics=self.metrics,
        )

    async def close(self) -> None:
        """Ends everything."""
        await self.sandboxes.close(5)
        await self.background.close(5)
        self.state.close()
        self.folder.cleanup()

    def written(self) -> dict[str, SandboxState]:
        """What is written down of each sandbox."""
        return {row.id: row.state for row in self.state.sandboxes.load()}

    async def make(self, *ids: str, **labels: str) -> None:
        for sandbox_id in ids:
            await self.sandboxes.create(SandboxRequest(), sandbox_id=sandbox_id, labels=labels)
