"""What has arrived of uploads that were cut: it waits a while for the client, and then it goes."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from enclaved.core.background import Background
from enclaved.errors import EnclaveError

log = logging.getLogger(__name__)

KEPT_S: Final = 600.0
"""How long it waits for its client. The guest knows the same time: it clears up where a daemon is killed meanwhile."""
MOST: Final = 256
"""How many there are at once. Where there are more the oldest goes."""


@dataclass(frozen=True, slots=True)
class CutUpload:
    """An upload, as its client knows it."""

    sandbox_id: str
    path: str
    upload_id: str


class CutUploads:
    """Knows what has arrived of uploads that were cut, and has it removed in time.

    ``remove`` removes it unless somebody writes to it; it may raise any `EnclaveError`.
    """

    def __init__(
        self, remove: Callable[[CutUpload], Awaitable[None]], background: Background, kept_s: float = KEPT_S
    ) -> None:
        self._remove, self._background, self._kept_s = remove, background, kept_s
        self._timers: dict[CutUpload, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def keep(self, upload: CutUpload) -> None:
        """One was cut."""
        self.taken_up(upload)
        while len(self._timers) >= MOST:
            self._expire(next(iter(self._timers)))
        loop = asyncio.get_running_loop()
        self._timers[upload] = loop.call_later(self._kept_s, self._expire, upload, context=contextvars.Context())

    def taken_up(self, upload: CutUpload) -> None:
        """One goes on, or is complete."""
        timer = self._timers.pop(upload, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, upload: CutUpload) -> None:
        self.taken_up(upload)
        self._background.spawn(self._removed(upload), f"remove an upload from {upload.sandbox_id}")

    async def _removed(self, upload: CutUpload) -> None:
        try:
            await self._remove(upload)
        except EnclaveError as error:  # most often the sandbox is gone
            log.info("cut upload not removed", extra={"sandbox_id": upload.sandbox_id, "reason": str(error)})
