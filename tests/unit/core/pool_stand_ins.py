"""Stand-ins for the sandboxes of pools and their resets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from enclaved.core.background import Background
from enclaved.core.crew import PoolParts
from enclaved.core.lending import Member
from enclaved.core.members import Members
from enclaved.core.policy import PolicyLimits, Role
from enclaved.core.pool import Pools
from enclaved.core.reset import ResetFailed, Shown
from enclaved.core.state import Baseline, MemberRow, PoolRow
from enclaved.errors import PolicyDenied, SandboxExists, SandboxNotFound
from enclaved.metrics import Metrics
from enclaved.model import EMPTY, Lease, PoolPlan, ResetProof, SandboxRequest, SandboxState, SandboxUpdate

PATIENCE_S = 60.0
LONG_S = 3600.0


@dataclass(eq=False)
class FakeRecord:
    id: str
    number: int = 0
    pool_id: str = ""
    state: SandboxState = SandboxState.RUNNING
    executions_started: int = 0
    born: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    spec: Any = field(default_factory=lambda: SimpleNamespace(ttl_s=3600.0))
    is_forgotten: bool = False
    request_id: str = ""
    request_digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FakePolicy:
    """Lets everybody have everything, but what is ``denied``."""

    denied: list[object] = field(default_factory=list)
    """Specs that nobody may have."""
    creates_per_minute: int = 0

    def role(self, identity: object) -> Role:
        return Role("everything", limits=PolicyLimits(creates_per_minute=self.creates_per_minute))

    def covers(self, spec: object, identity: object) -> None:
        if spec in self.denied:
            raise PolicyDenied("network", "spec.network", "not for you")


@dataclass
class FakeSandboxes:
    """Makes records. ``hold`` keeps creations waiting; ``errors`` are raised by the next creations or deletions."""

    records: dict[str, FakeRecord] = field(default_factory=dict)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    hold_from: int = 1
    """Number of the first creation that waits for it."""
    create_errors: dict[int, BaseException] = field(default_factory=dict)
    """By the number of the creation, from 1."""
    delete_errors: list[BaseException] = field(default_factory=list)
    update_errors: list[BaseException] = field(default_factory=list)
    may_update: asyncio.Event = field(default_factory=asyncio.Event)
    updating: int = 0
    created: list[str] = field(default_factory=list)
    creations: int = 0
    now: int = 0
    most: int = 0
    policy: FakePolicy = field(default_factory=FakePolicy)

    def __post_init__(self) -> None:
        self.hold.set()
        self.may_update.set()

    def check_room(self, count: int, field: str) -> None:
        self.asked = (count, field)

    def known(self, sandbox_id: str) -> FakeRecord | None:
        return self.records.get(sandbox_id)

    def record(self, sandbox_id: str) -> FakeRecord:
        if sandbox_id not in self.records:
            raise SandboxNotFound(sandbox_id)
        return self.records[sandbox_id]

    def get(self, sandbox_id: str) -> FakeRecord:
        return self.record(sandbox_id)

    async def create(
        self, request: SandboxRequest, *, sandbox_id: str = "", labels: Mapping[str, str] = EMPTY, pool_id: str = ""
    ) -> FakeRecord:
        self.creations += 1
        number = self.creations
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if number >= self.hold_from:
                await self.hold.wait()
            await asyncio.sleep(0)
            if number in self.create_errors:
                raise self.create_errors[number]
            if sandbox_id in self.records:
                raise SandboxExists(sandbox_id)
        finally:
            self.now -= 1
        record = FakeRecord(sandbox_id or f"box-{number}", number, pool_id)
        self.records[record.id] = record
        self.created.append(record.id)
        return record

    async def hand_over(self, record: FakeRecord, update: SandboxUpdate, request: tuple[str, str]) -> FakeRecord:
        assert self.record(record.id) is record
        self.updating += 1
        await self.may_update.wait()
        self.updating -= 1
        if self.update_errors:
            raise self.update_errors.pop()
        record.pool_id, (record.request_id, record.request_digest) = "", request
        record.labels = update.labels or EMPTY
        record.spec = SimpleNamespace(ttl_s=update.ttl_s)
        return record

    async def asked_before(self, request_id: str, digest: str) -> FakeRecord | None:
        found = [record for record in self.records.values() if record.request_id == request_id]
        return found[0] if found else None

    async def delete(self, sandbox_id: str) -> None:
        record = self.record(sandbox_id)
        if self.delete_errors:
            raise self.delete_errors.pop()
        del self.records[sandbox_id]
        record.is_forgotten = True


@dataclass
class FakeTables:
    """What was written down of pools, members and leases."""

    pools: dict[str, PoolRow] = field(default_factory=dict)
    members: dict[tuple[str, int], MemberRow] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)

    def save(self, row: PoolRow) -> None:
        self.pools[row.id] = row

    def forget(self, pool_id: str) -> None:
        self.pools.pop(pool_id, None)
        self.members = {key: row for key, row in self.members.items() if row.pool_id != pool_id}

    def note_member(self, row: MemberRow) -> None:
        self.members[row.pool_id, row.slot] = row

    def forget_member(self, pool_id: str, slot: int) -> None:
        self.members.pop((pool_id, slot), None)

    def newest(self, pool_id: str) -> int:
        return 0

    def note(self, row: PoolRow | Lease) -> None:
        if isinstance(row, Lease):
            self.leases.append(row)
        else:
            self.pools[row.id] = row


@dataclass
class Resets:
    """Stands in for `reset`: waits for ``may_end``, then fails as often as it should. The first of each is free."""

    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_end.set()

    async def __call__(self, record: FakeRecord, executions: object, baseline: Baseline | None) -> Shown:
        if baseline is not None:
            await self.may_end.wait()
            self.done.append(record.id)
            if self.failures:
                self.failures -= 1
                raise ResetFailed("something is left")
        return Shown(ResetProof(processes_killed=1, files_removed=2), Baseline("m", 0))


@dataclass
class World:
    sandboxes: FakeSandboxes
    resets: Resets
    tables: FakeTables
    metrics: Metrics
    pools: Pools

    def members(self, pool_id: str = "p") -> Members:
        return self.pools._pools[pool_id].members

    async def pool(self, size: int = 1, pool_id: str = "p", **plan: Any) -> Members:
        await self.pools.initialize(PoolPlan(size, **plan), pool_id=pool_id)
        return self.members(pool_id)

    def count(self, state: str) -> float:
        return self.metrics.value("enclaved_pool_members", state=state)

    def resets_ended(self, outcome: str) -> float:
        return self.metrics.value("enclaved_pool_resets_total", outcome=outcome)


@asynccontextmanager
async def pool_world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Pools over stand-ins, with nothing to wait for but what a test holds up."""
    sandboxes, resets, tables = FakeSandboxes(), Resets(), FakeTables()
    metrics, background = Metrics(version="0"), Background()

    async def warm(*_: object) -> int:
        return 0

    monkeypatch.setattr("enclaved.core.crew.reset", resets)
    monkeypatch.setattr("enclaved.core.crew.warm", warm)
    monkeypatch.setattr("enclaved.core.members.RETRY_FIRST_S", 0.0)
    parts: Any = {"sandboxes": sandboxes, "executions": None, "background": background, "metrics": metrics}
    pools = Pools(PoolParts(**parts, pools=tables, leases=tables))
    async with asyncio.timeout(PATIENCE_S):
        yield World(sandboxes, resets, tables, metrics, pools)
        pools.close()
        await background.close(PATIENCE_S)


async def settle(until: Callable[[], bool]) -> None:
    """Lets tasks run until something is so."""
    while True:
        if until():
            return
        await asyncio.sleep(0)


def waiting(members: Members, count: int) -> list[asyncio.Task[Member]]:
    return [asyncio.create_task(members.lease(LONG_S)) for _ in range(count)]
