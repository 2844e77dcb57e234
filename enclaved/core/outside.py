"""Follows what the engine tells, so that what somebody else does to the container of a sandbox is known at once.

Events are hints where to look: what a look finds decides. A stream that broke off is opened again from where it was,
and after it everything is compared with the engine's list, as from time to time anyway. So an event that is lost, late
or wrong costs time, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import EngineRefused, EngineUnavailable
from enclaved.metrics import Metrics
from enclaved.model import Intervention, SandboxState
from enclaved.runtime.base import ContainerChange, ContainerEvent, Runtime

log = logging.getLogger(__name__)

REOPEN_EVERY_S = 60.0
RETRY_S = 0.5
CHECKS_AT_ONCE = 8

_NOTED: Final[Mapping[ContainerChange, Intervention]] = MappingProxyType(
    {
        ContainerChange.RENAMED: Intervention.RENAMED,
        ContainerChange.COMMAND_RUN: Intervention.COMMAND_RUN,
        ContainerChange.FILES_COPIED: Intervention.FILES_COPIED,
        ContainerChange.NETWORK_CONNECTED: Intervention.NETWORK_CONNECTED,
    }
)
"""What the daemon itself never does, and what changes no state."""


class Outside:
    """Notices what happens to the containers of sandboxes behind the daemon's back."""

    def __init__(
        self, *, runtime: Runtime, sandboxes: Sandboxes, boot: Boot, background: Background, metrics: Metrics
    ) -> None:
        self._runtime, self._sandboxes, self._boot = runtime, sandboxes, boot
        self._background, self._metrics = background, metrics
        self._hearsay = boot.watching.hearsay
        self._since_ns = 0
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._looking: set[str] = set()
        self._again: set[str] = set()

    async def follow(self) -> None:
        """Follows the engine's events. Never returns."""
        while True:
            reason = "the engine ended them"
            try:
                await self._one_stream()
            except EngineUnavailable as error:
                reason = str(error)
            except EngineRefused as error:
                reason = str(error)
                self._since_ns = 0  # the same event again would not help
            finally:
                was_told, self._hearsay.listens = self._hearsay.listens, False
                self._metrics.engine.events(False)
            if was_told:  # and not one more try while the engine is away
                if self._boot.gate is not None:
                    self._boot.gate.doubt()
                self._metrics.engine.event_gap()
                log.warning("engine events broke off", extra={"reason": reason})
            await asyncio.sleep(RETRY_S)

    async def _one_stream(self) -> None:
        """Follows until the stream breaks off."""
        after_gap = True
        while True:
            async with self._runtime.events(self._since_ns) as events:
                self._hearsay.listens = True
                self._metrics.engine.events(True)
                await self._reconcile(after_gap)
                after_gap = False
                try:
                    async with asyncio.timeout(REOPEN_EVERY_S):
                        async for event in events:
                            self._since_ns = max(self._since_ns, event.at_ns + 1)
                            self._heard(event)
                        return
                except TimeoutError:
                    continue

    async def _reconcile(self, after_gap: bool) -> None:
        """Compares what there should be with what the engine lists, and looks where they differ.

        Limits are not listed: each container is asked for them, but only where events may have been missed.
        """
        expected = self._sandboxes.with_containers()  # before the list: what is made meanwhile is not missing
        listed = {container.id: container for container in await self._runtime.list_records()}
        for record in expected:
            found = listed.get(record.container_id or "")
            if found is None or not found.running or found.paused is not (record.state is SandboxState.PAUSED):
                self._look_at(record)
            elif after_gap:
                self._check_limits(record)

    def _heard(self, event: ContainerEvent) -> None:
        known = self._sandboxes.with_containers()
        record = next((one for one in known if one.container_id == event.container_id), None)
        if record is None:
            return  # nobody's, or one that we are making or removing ourselves
        self._hearsay.note(event.container_id, event.change)
        if event.change in _NOTED:
            self._note(record, _NOTED[event.change])
        elif event.change is ContainerChange.UPDATED:
            self._check_limits(record)
        elif event.change is not ContainerChange.OUT_OF_MEMORY:  # of that, verdicts tell
            self._look_at(record, signalled=event.change is ContainerChange.SIGNALLED)

    def _note(self, record: SandboxRecord, what: Intervention) -> None:
        log.warning("somebody else changed a container", extra={"sandbox_id": record.id, "what": what.value})
        self._metrics.engine.intervened(what)

    def _look_at(self, record: SandboxRecord, *, signalled: bool = False) -> None:
        """Looks at a sandbox soon; once more if something is heard of it meanwhile."""
        if record.id in self._looking:
            self._again.add(record.id)
            return
        self._looking.add(record.id)
        self._background.spawn(self._look(record, signalled), f"look at {record.id}")

    async def _look(self, record: SandboxRecord, signalled: bool) -> None:
        try:
            await self._boot.watching.look(record, self._sandboxes.lose, self._sandboxes.seen)
            while record.id in self._again:
                self._again.discard(record.id)
                await self._boot.watching.look(record, self._sandboxes.lose, self._sandboxes.seen)
            if signalled and record in self._sandboxes.with_containers():
                self._note(record, Intervention.SIGNALLED)
        except (EngineUnavailable, EngineRefused) as error:  # everything is looked through from time to time
            log.info("could not look at a container", extra={"sandbox_id": record.id, "reason": str(error)})
        finally:
            self._looking.discard(record.id)
            self._again.discard(record.id)

    def _check_limits(self, record: SandboxRecord) -> None:
        self._background.spawn(self._hold_limits(record), f"check the limits of {record.id}")

    async def _hold_limits(self, record: SandboxRecord) -> None:
        """Gives a container the limits of its sandbox again, if somebody else changed them."""
        try:
            async with self._checks, record.lock:
                if record not in self._sandboxes.with_containers() or record.container_id is None:
                    return
                wanted = self._boot.runtime_classes.realised(record.spec)
                if await self._runtime.has_limits(record.container_id, wanted):
                    return
                self._note(record, Intervention.LIMITS_CHANGED)
                await self._boot.limit(record)
                log.info("limits put back", extra={"sandbox_id": record.id})
        except (EngineUnavailable, EngineRefused) as error:
            log.warning("limits not put back", extra={"sandbox_id": record.id, "reason": str(error)})
