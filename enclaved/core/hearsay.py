"""What the engine told of containers lately: who ended one is known from nothing else.

Nothing depends on it but the words: events may be lost, and engines may be asked by anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from enclaved.model import Intervention
from enclaved.runtime.base import ContainerChange

CONTAINERS_MOST: Final = 1024
REMEMBERED_S: Final = 60.0
"""How long what was told of a container is kept after it was talked of last: its sandbox has gone long before."""
TOLD_WITHIN_S: Final = 0.3
"""How much later than the end of a container the engine may tell who wanted it."""
STARTED_WITHIN_S: Final = 1.0
"""How long a container that was stopped may take to be started anew, if that is what somebody wants."""

TEXTS: Final[Mapping[Intervention, str]] = MappingProxyType(
    {
        Intervention.REMOVED: "its container was removed by somebody else",
        Intervention.STOPPED: "its container was stopped by somebody else, or by its engine",
        Intervention.KILLED: "its container was killed by somebody else",
        Intervention.RESTARTED: "its container was restarted by somebody else: its programs and its files are gone",
    }
)
_LAST_WORDS: Final = (ContainerChange.REMOVED, ContainerChange.RESTARTED)
_ENDINGS: Final = (
    (ContainerChange.REMOVED, Intervention.REMOVED),
    (ContainerChange.RESTARTED, Intervention.RESTARTED),
    (ContainerChange.STOPPED, Intervention.STOPPED),
    (ContainerChange.SIGNALLED, Intervention.KILLED),
)


@dataclass(slots=True)
class _Told:
    changes: set[ContainerChange] = field(default_factory=set)
    is_complete: asyncio.Event = field(default_factory=asyncio.Event)
    is_old: bool = False
    at: float = 0.0
    """Monotonic time at which it was talked of last."""


class Hearsay:
    """Remembers what was told of the containers that were talked of last."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self.listens = False
        """Whether events come at this moment."""

    def note(self, container_id: str, change: ContainerChange) -> None:
        """Something was told of a container of ours."""
        told = self._of(container_id)
        told.changes.add(change)
        if change in _LAST_WORDS:
            told.is_complete.set()

    async def who_ended(self, container_id: str) -> Intervention | None:
        """What somebody else did to a container that has ended; ``None``: nothing that was told. Waits for a moment."""
        told = self._of(container_id)
        if self.listens:
            await _wait(told.is_complete, TOLD_WITHIN_S)
            if ContainerChange.STOPPED in told.changes:
                await _wait(told.is_complete, STARTED_WITHIN_S)
        return next((what for change, what in _ENDINGS if change in told.changes), None)

    def is_news(self, container_id: str) -> bool:
        """Whether this is asked for the first time of a container that has ended."""
        told = self._of(container_id)
        was_old, told.is_old = told.is_old, True
        return not was_old

    def _of(self, container_id: str) -> _Told:
        told = self._told.setdefault(container_id, _Told())
        self._told.move_to_end(container_id)
        told.at = time.monotonic()
        while len(self._told) > CONTAINERS_MOST or next(iter(self._told.values())).at < told.at - REMEMBERED_S:
            self._told.popitem(last=False)
        return told


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):  # one that was killed, or ended by itself, has no last word
        async with asyncio.timeout(seconds):
            await event.wait()
