"""The end of sandboxes whose guest is too old for this daemon: what runs may end, nothing new begins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from enclaved.agent.link import GuestLink
from enclaved.core.record import SandboxRecord
from enclaved.metrics import Metrics

log = logging.getLogger(__name__)

DRAIN_DEADLINE_S: Final = 3600.0
"""How long executions may go on."""
LINGER_S: Final = 10.0
"""How long the output of those that ended is kept for readers that come back."""
LOOK_EVERY_S: Final = 0.25


class Draining:
    """Follows sandboxes with old guests until nothing runs in them any more."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def drain(self, record: SandboxRecord, link: GuestLink, watching: Coroutine[Any, Any, None]) -> str:
        """Waits for the end of its executions, or the deadline; returns why the sandbox is to be given up.

        ``watching`` watches over it meanwhile.
        """
        text = f"its guest speaks version {link.version} of the guest protocol, too old for this version of enclaved"
        log.warning(
            "sandbox draining",
            extra={"sandbox_id": record.id, "reason": text, "executions": record.active_executions},
        )
        self._metrics.sandboxes.drained()
        watcher = asyncio.ensure_future(watching)
        loop = asyncio.get_running_loop()
        had_work, deadline = record.active_executions > 0, loop.time() + DRAIN_DEADLINE_S
        try:
            while record.active_executions and loop.time() < deadline and not watcher.done():
                await asyncio.wait([watcher], timeout=LOOK_EVERY_S)
            if had_work and not watcher.done():
                await asyncio.wait([watcher], timeout=LINGER_S)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        left = f"; {record.active_executions} executions did not end in time" if record.active_executions else ""
        return f"{text}{left}; make a new sandbox"
