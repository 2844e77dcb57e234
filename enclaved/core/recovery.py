"""Takes up what an earlier daemon on this state directory left: sandboxes that live, executions that run in them.

`load` reads what was written down, before anything is served: every sandbox and execution is known from then on. Its
guest looks for its daemon at least each second; until it is there, calls that need it are answered with
`GuestUnavailable`, and clients try again. What became of each sandbox is one line in the log and one count.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from enclaved.core.boot import Boot
from enclaved.core.draining import Draining
from enclaved.core.execution_rows import ExecutionText
from enclaved.core.executions import Executions
from enclaved.core.leftovers import Leftovers
from enclaved.core.pool_rejoin import KeptMembers
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import SandboxRow, State
from enclaved.metrics import Metrics
from enclaved.model import RecoveryOutcome, SandboxState

log = logging.getLogger(__name__)

REMOVED_WITHIN_S: Final = 60.0


class Recovery:
    """The beginning of a daemon that comes after another."""

    def __init__(
        self, *, state: State, sandboxes: Sandboxes, executions: Executions, boot: Boot, metrics: Metrics
    ) -> None:
        self._state, self._sandboxes, self._executions = state, sandboxes, executions
        self._boot, self._metrics = boot, metrics
        self._draining = Draining(metrics)
        self._doomed: list[SandboxRecord] = []
        self._cleared = asyncio.Event()
        self.pools = KeptMembers((), ())
        """What was written down of pools."""

    def load(self) -> None:
        """Takes up every sandbox that is to live on, with its executions. Raises `StateUnusable`."""
        self.pools = KeptMembers(self._state.pools.load(), self._state.pools.load_members())
        executions = self._state.executions.texts()
        of_sandbox: dict[str, list[ExecutionText]] = {}
        for execution in executions:
            of_sandbox.setdefault(execution.sandbox_id, []).append(execution)
        kept = set()
        for row in self._state.sandboxes.load():
            record = SandboxRecord.of(row, self._metrics)
            why = self._doom(row)
            if why:
                self._doomed.append(record)
                self._sandboxes.take_down(record, why, self._cleared)
                continue
            kept.add(row.id)
            self._sandboxes.take_up(record, self._rejoin)
            self._executions.take_up(record, of_sandbox.get(row.id, ()), self._state.executions.read)
        for execution in executions:
            if execution.sandbox_id not in kept:
                self._state.executions.forget(execution.id)

    async def finish(self, leftovers: Leftovers) -> None:
        """Removes half-made and half-deleted sandboxes, once nothing is left that could be their containers."""
        await leftovers.cleared.wait()
        self._cleared.set()
        removals = [asyncio.ensure_future(record.gone.wait()) for record in self._doomed]
        if removals:
            await asyncio.wait(removals, timeout=REMOVED_WITHIN_S)
        for removal in removals:
            removal.cancel()
        for record in self._doomed:
            if not record.gone.is_set():
                continue  # the engine does not let it; it is tried on
            self._metrics.sandboxes.recovered(RecoveryOutcome.REMOVED)
            log.info("sandbox removed", extra={"sandbox_id": record.id, "reason": record.state_reason})
        self._doomed.clear()

    def _doom(self, row: SandboxRow) -> str:
        """Why a sandbox is removed; empty if it lives on."""
        if row.state is SandboxState.DELETING:
            return row.state_reason or "the daemon was killed while it deleted it"
        if row.pool_id and not self.pools.has(row.pool_id, row.id, row.number):
            return "the daemon was killed while it made it for a pool"
        was_stopped = any(change.state is SandboxState.STOPPED for change in row.history)
        if row.state is SandboxState.INITIALIZING and not was_stopped:
            return "the daemon was killed while it made it"
        return ""

    async def _rejoin(self, record: SandboxRecord) -> None:
        counted = False

        def seen(record: SandboxRecord, paused: bool) -> None:
            nonlocal counted
            self._sandboxes.seen(record, paused)
            if paused and not counted:  # its guest cannot come before somebody resumes it
                counted = True
                self._adopted(record)

        reason = await self._boot.watching.rejoin(record, seen)
        if reason:
            self._metrics.sandboxes.recovered(RecoveryOutcome.LOST)
            self._sandboxes.lose(record, reason)  # which logs it
            return
        if record.link is not None:
            strangers = record.link.end_strangers()
            if strangers:
                log.warning("unknown executions ended", extra={"sandbox_id": record.id, "executions": strangers})
        if not counted:
            self._adopted(record)
        if record.state is SandboxState.STOPPING:
            await self._sandboxes.finish_stop(record)
        await self._begin_command(record)
        if record.state in (SandboxState.RUNNING, SandboxState.PAUSED):
            watching = self._boot.watching.watch(record, self._sandboxes.lose, self._sandboxes.seen)
            if record.link is not None and record.link.outdated:
                self._sandboxes.lose(record, await self._draining.drain(record, record.link, watching))
            else:
                await watching

    async def _begin_command(self, record: SandboxRecord) -> None:
        """Begins a command that the daemon before was killed before, so that the sandbox is what was asked for."""
        async with record.lock:
            if record.command_due and record.state is SandboxState.RUNNING:
                await self._sandboxes.commands.make_good(record)
                self._state.sandboxes.note(record.row())

    def _adopted(self, record: SandboxRecord) -> None:
        self._metrics.sandboxes.recovered(RecoveryOutcome.ADOPTED)
        log.info("sandbox adopted", extra={"sandbox_id": record.id, "executions": record.active_executions})
