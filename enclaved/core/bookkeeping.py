"""Writes executions down: at once what must be there before something happens, together what has happened."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Final

from enclaved.core.execution_rows import ExecutionRow, ExecutionStore
from enclaved.model import Finished

SETTLE_AFTER_S: Final = 0.05
SETTLE_AT_MOST: Final = 512


class Bookkeeping:
    """Keeps ends and farewells for a moment, so that short executions do not cost a write each.

    A daemon that is killed in that moment has lost nothing: the guest tells the end again, and what should have been
    dropped is kept once more for as long as any that has ended.
    """

    def __init__(self, store: ExecutionStore) -> None:
        self._store = store
        self._settled: dict[str, Finished | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def save(self, row: ExecutionRow) -> None:
        """Writes an execution down, or what has changed of it. Raises `NoSpace`."""
        if row.id in self._settled:
            self.settle()
        self._store.save(row)

    def finish(self, execution_id: str, finished: Finished) -> None:
        """It has ended; that is written soon."""
        self._settle_later(execution_id, finished)

    def forget(self, execution_id: str) -> None:
        """Nobody can ask for it any more; its row goes soon."""
        self._settle_later(execution_id, None)

    def settle(self) -> None:
        """Writes what is still to be written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        settled, self._settled = self._settled, {}
        if settled:
            self._store.settle(settled)

    def _settle_later(self, execution_id: str, finished: Finished | None) -> None:
        self._settled[execution_id] = finished
        if len(self._settled) >= SETTLE_AT_MOST:
            self.settle()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SETTLE_AFTER_S, self.settle, context=contextvars.Context())
