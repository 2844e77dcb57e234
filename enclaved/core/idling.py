"""Sandboxes that nobody uses: removed after their idle timeout, should they have one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Final

from enclaved.core.record import SandboxRecord
from enclaved.core.state import SandboxTable

log = logging.getLogger(__name__)

NOTE_EVERY_S: Final = 5.0
"""How much later than written down a sandbox may really have been used last."""
RETURN_GRACE_S: Final = 10.0
"""How long clients have to come back after a restart of the daemon."""


class Idling:
    """One timer for each sandbox that has an idle timeout. ``end`` removes one."""

    def __init__(self, table: SandboxTable, end: Callable[[SandboxRecord], None]) -> None:
        self._table, self._end = table, end

    def watch(self, record: SandboxRecord) -> None:
        """Begins to wait for the end of its idle timeout, as that is now. All is written down of its use so far."""
        record.on_used, record.used_noted = self._note, record.used
        self._wait(record, self._due(record))

    def take_up(self, record: SandboxRecord) -> None:
        """Goes on waiting, in a daemon that comes after another. Nobody could use it in between."""
        record.on_used = self._note
        earliest = asyncio.get_running_loop().time() + RETURN_GRACE_S
        self._wait(record, max(self._due(record) + NOTE_EVERY_S, earliest))

    def _note(self, record: SandboxRecord) -> None:
        """The sandbox is used at this moment. That is written down now and then."""
        if record.spec.idle_timeout_s and record.used - record.used_noted > NOTE_EVERY_S:
            record.used_noted = record.used
            self._table.note_use(record.id, record.number, record.used)

    def _due(self, record: SandboxRecord) -> float:
        return (record.used or record.born) + record.spec.idle_timeout_s

    def _wait(self, record: SandboxRecord, until: float) -> None:
        if record.idle_timer is not None:
            record.idle_timer.cancel()
            record.idle_timer = None
        if record.spec.idle_timeout_s and not record.pool_id:
            loop = asyncio.get_running_loop()
            record.idle_timer = loop.call_at(until, self._look, record, context=contextvars.Context())

    def _look(self, record: SandboxRecord) -> None:
        now = asyncio.get_running_loop().time()
        due = self._due(record)
        if record.pool_id:  # somebody nearly claimed it
            return
        if record.active_executions or record.making is not None:
            self._wait(record, now + record.spec.idle_timeout_s)
        elif now < due:
            self._wait(record, due)
        else:
            log.info("sandbox idle", extra={"sandbox_id": record.id, "idle_timeout_s": record.spec.idle_timeout_s})
            self._end(record)
