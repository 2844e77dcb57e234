"""How sandboxes end without anybody asking: lost, or at the end of their time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.record import SandboxRecord
from enclaved.core.state import SandboxTable
from enclaved.errors import EngineUnavailable, SandboxLost, SandboxNotFound
from enclaved.model import SandboxState

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0


class Endings:
    """Gives sandboxes up and removes those whose time is over, for certain: as long as the engine is away it tries."""

    def __init__(
        self,
        *,
        boot: Boot,
        background: Background,
        table: SandboxTable,
        known: Callable[[str], SandboxRecord | None],
        enter: Callable[[SandboxRecord, SandboxState, str], None],
        delete: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._boot, self._background, self._table = boot, background, table
        self._known, self._enter, self._delete = known, enter, delete

    def give_up(self, record: SandboxRecord, why: str) -> None:
        """Its executions are lost, its container goes, its record says why."""
        log.error("sandbox lost", extra={"sandbox_id": record.id, "reason": why})
        self._enter(record, SandboxState.ERROR, why)
        if record.link is not None:
            record.link.fail(SandboxLost(record.id, why))
        self.clear_later(record)

    def clear_later(self, record: SandboxRecord) -> None:
        """Removes the container of a sandbox that is lost, and keeps the record."""
        self._background.spawn(self._clear(record), f"clear {record.id}")

    async def _clear(self, record: SandboxRecord) -> None:
        while record.container_id is not None:
            try:
                async with record.lock:
                    await self._boot.down(record)
                    if self._known(record.id) is record:
                        self._table.note(record.row())
            except EngineUnavailable:
                await asyncio.sleep(RETRY_S)

    def expire_later(self, record: SandboxRecord) -> None:
        """Removes a sandbox at the end of its time to live, as that is now."""
        if record.expiry is not None:
            record.expiry.cancel()
        end = record.born + record.spec.ttl_s
        record.expiry = asyncio.get_running_loop().call_at(end, self._expire, record, context=contextvars.Context())

    def _expire(self, record: SandboxRecord) -> None:
        log.info("sandbox expired", extra={"sandbox_id": record.id, "ttl_s": record.spec.ttl_s})
        self.delete_later(record, "expire")

    def delete_later(self, record: SandboxRecord, why: str) -> None:
        """Deletes a sandbox for certain."""
        self._background.spawn(self._delete_for_certain(record), f"{why} {record.id}")

    async def _delete_for_certain(self, record: SandboxRecord) -> None:
        while self._known(record.id) is record:
            try:
                await self._delete(record.id)
            except EngineUnavailable:
                await asyncio.sleep(RETRY_S)
            except SandboxNotFound:
                return
