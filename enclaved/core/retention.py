"""Keeps executions that have ended for those who come late: for a while, and not too many."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Final

from enclaved.agent.guest.limits import EXECUTIONS_MAX
from enclaved.core.execution import Execution
from enclaved.core.record import SandboxRecord

RECORD_KEPT_S: Final = 60.0
RECORDS_PER_SANDBOX: Final = 256
RECORDS_MOST: Final = EXECUTIONS_MAX
"""For each sandbox as well, with those whose output somebody may still want. A guest knows no more."""


class EndedExecutions:
    """Those that have ended, oldest first for each sandbox. ``drop`` is told of each that goes."""

    def __init__(self, drop: Callable[[Execution], None]) -> None:
        self._on_drop = drop
        self._kept: dict[SandboxRecord, dict[Execution, None]] = {}

    def keep(self, execution: Execution) -> None:
        """Keeps one. If that makes too many, drops the oldest that nobody reads and whose output nobody may want."""
        kept = self._kept.setdefault(execution.record, {})
        kept[execution] = None
        self._expire_later(execution)
        if len(kept) > RECORDS_PER_SANDBOX:
            oldest = next((other for other in kept if not other.attached and not _is_needed(other)), None)
            if oldest is None and len(kept) > RECORDS_MOST:
                oldest = next((other for other in kept if not other.attached), None)
            if oldest is not None:
                self._drop(oldest)

    def _expire_later(self, execution: Execution) -> None:
        loop = asyncio.get_running_loop()
        execution.expiry = loop.call_later(RECORD_KEPT_S, self._expire, execution, context=contextvars.Context())

    def _expire(self, execution: Execution) -> None:
        if execution.attached:
            self._expire_later(execution)  # somebody still reads it
        else:
            self._drop(execution)

    def _drop(self, execution: Execution) -> None:
        if execution.expiry is not None:
            execution.expiry.cancel()
        kept = self._kept[execution.record]
        del kept[execution]
        if not kept:
            del self._kept[execution.record]
        self._on_drop(execution)


def _is_needed(execution: Execution) -> bool:
    finished = execution.finished
    return finished is not None and execution.handle.is_needed(finished.bytes_total)
