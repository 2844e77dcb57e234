"""What is done to the sandboxes of a pool: made, reset, warmed and removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from enclaved.core.background import Background
from enclaved.core.executions import Executions
from enclaved.core.identity import acting_as
from enclaved.core.rates import Rates
from enclaved.core.record import SandboxRecord
from enclaved.core.reset import ResetFailed, Shown, reset
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import Baseline, LeaseTable, PoolTable
from enclaved.core.warming import WarmingFailed, warm
from enclaved.errors import EnclaveError, EngineRefused, SandboxNotFound
from enclaved.metrics import Metrics
from enclaved.model import LOCAL, Identity, PoolPlan

log = logging.getLogger(__name__)

CREATES_AT_ONCE: Final = 4
REMOVALS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class PoolParts:
    """What pools need of the daemon."""

    sandboxes: Sandboxes
    executions: Executions
    background: Background
    metrics: Metrics
    pools: PoolTable
    leases: LeaseTable


@dataclass(frozen=True, slots=True)
class Made:
    """A sandbox that is ready to be lent."""

    record: SandboxRecord
    baseline: Baseline
    clean_at: int
    """`SandboxRecord.executions_started` when it was as new."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What was shown of a sandbox that is as new, and `SandboxRecord.executions_started` at that time."""

    shown: Shown
    clean_at: int


class Crew:
    """Works for one pool. ``plan`` may be replaced; it counts for what is made from then on.

    Its members are made as ``owner``, with that one's role.
    """

    def __init__(self, pool_id: str, plan: PoolPlan, parts: PoolParts, owner: Identity = LOCAL) -> None:
        self.pool_id, self.plan, self.owner = pool_id, plan, owner
        self._parts = parts
        self._gate = asyncio.Semaphore(CREATES_AT_ONCE)
        self._next_at = 0.0
        self._rates = Rates()

    @asynccontextmanager
    async def turn(self, *, paced: bool) -> AsyncIterator[None]:
        """Waits until one more sandbox may be made: a few at once, and ``paced`` so many in a second.

        ``paced`` is what comes in the place of others. In a minute no more of that is made than its owner might make.
        """
        async with self._gate:
            if paced:
                now = asyncio.get_running_loop().time()
                starts_at = max(now, self._next_at)
                self._next_at = starts_at + 1.0 / self.plan.refill_per_s
                await asyncio.sleep(starts_at - now)
                wait_s = self._turn_in_s()
                while wait_s:
                    await asyncio.sleep(wait_s)
                    wait_s = self._turn_in_s()
            yield

    def _turn_in_s(self) -> float:
        """Takes one of the owner's turns to make a sandbox: 0, or in how many seconds there is one."""
        role = self._parts.sandboxes.policy.role(self.owner)
        return self._rates.take(self.owner.name, role.limits.creates_per_minute)

    async def make(self, sandbox_id: str = "") -> Made:
        """Makes a sandbox and warms it. Leaves none behind if it fails. Raises as `Sandboxes.create`."""
        plan, sandboxes = self.plan, self._parts.sandboxes
        with acting_as(self.owner):  # whoever's call it is that makes a new member necessary
            sandbox = await sandboxes.create(
                plan.request, sandbox_id=sandbox_id, labels=plan.labels, pool_id=self.pool_id
            )
        record = sandboxes.record(sandbox.id)
        try:
            ready = await self._ready(record, None)
            return Made(record, ready.shown.baseline, ready.clean_at)
        except (ResetFailed, WarmingFailed) as error:
            await self.remove(record)
            raise EngineRefused(
                f"make a member of pool {self.pool_id!r}", f"it is not as it should be: {error}"
            ) from error
        except BaseException:
            await self._undo(record)
            raise

    async def _undo(self, record: SandboxRecord) -> None:
        """Removes a sandbox, and waits for the end of that also if nobody wants another one any more."""
        removal = self._parts.background.begin(self.remove(record), f"undo {record.id}")
        try:
            await asyncio.shield(removal)
        except asyncio.CancelledError:
            await asyncio.wait([removal])
            raise

    async def clean(self, record: SandboxRecord, baseline: Baseline) -> Ready:
        """Makes a sandbox as new and warm again. Raises `ResetFailed`."""
        try:
            return await self._ready(record, baseline)
        except (WarmingFailed, EnclaveError) as error:
            raise ResetFailed(f"it cannot be warmed again: {error}") from error

    async def _ready(self, record: SandboxRecord, baseline: Baseline | None) -> Ready:
        """Resets and warms. Whatever others run meanwhile would be warm with it, so nobody gets it then."""
        shown = await reset(record, self._parts.executions, baseline)
        before = record.executions_started
        clean_at = before + await warm(record, self.plan, self._parts.executions)
        if record.executions_started != clean_at:
            raise ResetFailed("something was run in it while it was warmed", shown.proof)
        return Ready(shown, clean_at)

    def is_known(self, record: SandboxRecord) -> bool:
        """Whether a sandbox is still there, and not another one of the same id."""
        try:
            return self._parts.sandboxes.record(record.id) is record
        except SandboxNotFound:
            return False

    async def remove(self, record: SandboxRecord) -> None:
        """Deletes a sandbox; one that is gone, or was claimed, is fine. Raises `EngineUnavailable`."""
        try:
            if self.is_known(record) and record.pool_id == self.pool_id:
                await self._parts.sandboxes.delete(record.id)
        except SandboxNotFound:
            pass

    async def remove_all(self, records: list[SandboxRecord]) -> list[EnclaveError]:
        """Deletes many, a few at a time; returns what kept some from being deleted."""
        gate = asyncio.Semaphore(REMOVALS_AT_ONCE)
        errors: list[EnclaveError] = []

        async def remove(record: SandboxRecord) -> None:
            async with gate:
                try:
                    await self.remove(record)
                except EnclaveError as error:
                    errors.append(error)

        await asyncio.gather(*(remove(record) for record in records))
        return errors
