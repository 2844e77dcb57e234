"""Watches that guests end executions at their timeouts. One that does not costs its sandbox."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Mapping

from enclaved.core.execution import Execution
from enclaved.core.record import SandboxRecord
from enclaved.model import SandboxState

TIMEOUT_MARGIN_S = 15.0
WHY = "its guest did not end an execution at its timeout"


class Overdue:
    """One timer for each execution. ``running`` holds those of each sandbox in the order in which they came."""

    def __init__(
        self, running: Mapping[SandboxRecord, Mapping[str, Execution]], lose: Callable[[SandboxRecord, str], None]
    ) -> None:
        self._running, self._lose = running, lose

    def watch(self, execution: Execution) -> None:
        """Watches an execution until it ends."""
        context = contextvars.Context()
        execution.overdue = asyncio.get_running_loop().call_at(_due(execution), self.look, execution, context=context)

    def ended(self, execution: Execution) -> None:
        """Stops watching; the time of those that waited behind it in its context begins."""
        if execution.overdue is not None:
            execution.overdue.cancel()
        if execution.context is not None:
            now = asyncio.get_running_loop().time()
            for other in self._running.get(execution.record, {}).values():
                if other.context == execution.context:
                    other.since = now

    def look(self, execution: Execution) -> None:
        """Gives the sandbox up if the execution should long have ended."""
        now = asyncio.get_running_loop().time()
        if execution.record.state is SandboxState.PAUSED:
            execution.record.paused_at = now
        if self._is_in_line(execution):
            execution.since = now
        if now < _due(execution):
            self.watch(execution)
        else:
            self._lose(execution.record, WHY)

    def _is_in_line(self, execution: Execution) -> bool:
        """Whether it waits in its context behind others, whose own time comes first."""
        before = itertools.takewhile(lambda other: other is not execution, self._running[execution.record].values())
        return execution.context is not None and any(other.context == execution.context for other in before)


def _due(execution: Execution) -> float:
    """Monotonic time until which a guest must have ended an execution, whatever it runs."""
    return max(execution.since, execution.record.paused_at) + execution.timeout_s + TIMEOUT_MARGIN_S
