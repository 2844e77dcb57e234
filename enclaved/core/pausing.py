"""Sandboxes whose processes are all frozen: on request, or by somebody at the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from enclaved.core.boot import Boot
from enclaved.core.record import SandboxRecord
from enclaved.errors import GuestUnavailable, WrongState
from enclaved.model import Cause, Intervention, SandboxState

log = logging.getLogger(__name__)

AWAKE_WITHIN_S: Final = 5.0
ON_REQUEST: Final = "paused on request"
FROM_OUTSIDE: Final = "its container was paused from outside"


class Pausing:
    """Freezes sandboxes and lets them go on. ``enter`` changes the state of one and writes that down.

    The engine has the truth: what is written down after a change is corrected by whoever looks next.
    """

    def __init__(self, boot: Boot, enter: Callable[[SandboxRecord, SandboxState, str, Cause], None]) -> None:
        self._boot, self._enter = boot, enter

    async def pause(self, record: SandboxRecord) -> None:
        """Freezes a running sandbox, whose lock the caller holds; one that is paused is left as it is.

        Raises `WrongState`, `GuestUnavailable`, `EngineUnavailable`, `EngineRefused`; then it runs.
        """
        if record.pool_id:
            text = (
                f"sandbox {record.id!r} is a member of pool {record.pool_id!r}, which looks after it; it is not paused"
            )
            raise WrongState(f"sandbox/{record.id}", record.state.value, "no member of a pool", text)
        if record.state is not SandboxState.PAUSED:
            record.running_link()
            await self._boot.freeze(record)
            self._enter(record, SandboxState.PAUSED, ON_REQUEST, Cause.REQUEST)
            log.info("sandbox paused", extra={"sandbox_id": record.id})

    async def resume(self, record: SandboxRecord) -> None:
        """Lets a paused sandbox go on, whose lock the caller holds; one that runs is left as it is.

        Raises `WrongState`, `EngineUnavailable`, `EngineRefused`; then it stays paused.
        """
        if record.state is not SandboxState.PAUSED:
            record.running_link()
            return
        await self._boot.thaw(record)
        record.touch()
        self._goes_on(record, "", Cause.REQUEST)
        if record.link is not None:
            with contextlib.suppress(GuestUnavailable):  # calls that need it say so themselves
                await record.link.ping(AWAKE_WITHIN_S)

    def seen(self, record: SandboxRecord, paused: bool) -> None:
        """Somebody looked, and its container was paused or not. While it is being changed that decides nothing."""
        if record.lock.locked():
            return
        if paused and record.state is SandboxState.RUNNING:
            record.metrics.engine.intervened(Intervention.PAUSED)
            self._enter(record, SandboxState.PAUSED, FROM_OUTSIDE, Cause.ENGINE)
            log.warning("sandbox paused", extra={"sandbox_id": record.id, "reason": FROM_OUTSIDE})
        elif not paused and record.state is SandboxState.PAUSED:
            record.metrics.engine.intervened(Intervention.RESUMED)
            if record.link is not None:
                record.link.send({"type": "resume"})
            self._goes_on(record, "its container was resumed from outside", Cause.ENGINE)

    def _goes_on(self, record: SandboxRecord, reason: str, cause: Cause) -> None:
        record.paused_at = asyncio.get_running_loop().time()
        self._enter(record, SandboxState.RUNNING, reason, cause)
        log.info("sandbox resumed", extra={"sandbox_id": record.id, "reason": reason})
