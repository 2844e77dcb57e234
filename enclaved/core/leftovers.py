"""What earlier daemons left on the engine and on the disk: what is provably theirs and of no sandbox is removed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from enclaved.core.boot import Boot
from enclaved.core.networks import remove_networks
from enclaved.core.ownership import Ownership, abandoned, remove_state
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import EngineUnavailable
from enclaved.metrics import Metrics
from enclaved.model import SandboxState
from enclaved.runtime.base import LABEL_ID, LABEL_OWNER, ContainerRecord, Runtime

log = logging.getLogger(__name__)

RETRY_S = 2.0
LATE_S = 60.0
"""How long an engine may take to make a container."""


def is_owned(container: ContainerRecord, sandboxes: Sandboxes, boot: Boot) -> bool:
    """Whether a container of ours belongs to a sandbox that is known, to one that is being made, or to a canary."""
    if container.labels.get(LABEL_ID) in boot.canaries:
        return True
    record = sandboxes.known(container.labels.get(LABEL_ID, ""))
    return record is not None and (record.container_id == container.id or is_being_made(record))


def is_being_made(record: SandboxRecord) -> bool:
    """Whether the engine may have containers of it whose ids nobody knows yet.

    That is its own, and for a moment another one, which sets the packet filter of its network.
    """
    return record.state is SandboxState.INITIALIZING


class Leftovers:
    """Clears away what belongs to no sandbox that is known. What cannot be proven to be ours is left alone."""

    def __init__(
        self, *, runtime: Runtime, boot: Boot, ownership: Ownership, sandboxes: Sandboxes, metrics: Metrics
    ) -> None:
        self._runtime, self._boot, self._ownership = runtime, boot, ownership
        self._sandboxes, self._metrics = sandboxes, metrics
        self.cleared = asyncio.Event()
        """Set once everything was looked through."""

    async def keep_clear(self, state_dir: Path, embedded_base: Path | None) -> None:
        """Clears leftovers, and again after a while: engines go on with what a daemon wanted that was then killed."""
        await self.clear(state_dir, embedded_base)
        if not await self._sandboxes.closes_within(LATE_S):
            await self.clear(state_dir, embedded_base)

    async def clear(self, state_dir: Path, embedded_base: Path | None) -> None:
        """Removes what an earlier daemon on this state directory left, and what dead embedded daemons left.

        Waits for the engine for as long as it takes, but no longer than until the daemon's end.
        """
        complete = False
        while not complete:
            try:
                complete = await self._remove_owned(self._ownership)
                await self._boot.networks.sweep()
                await asyncio.to_thread(self._boot.remove_old_directories)
                if embedded_base is not None:
                    for directory, ownership in abandoned(embedded_base, state_dir):
                        await self._remove_owned(ownership)
                        await remove_networks(self._runtime, ownership)
                        await asyncio.to_thread(remove_state, directory)
            except EngineUnavailable as error:
                self._metrics.engine.up(False)
                log.warning("the engine does not answer", extra={"reason": str(error)})
            if not complete and await self._sandboxes.closes_within(RETRY_S):
                return
        self.cleared.set()

    async def _remove_owned(self, ownership: Ownership) -> bool:
        """Removes containers that are provably this owner's and of no sandbox; False if one must be seen again."""
        containers = await self._runtime.list_records()
        complete = True
        for container in containers:
            if container.labels.get(LABEL_OWNER) != ownership.owner:
                continue
            if not ownership.proves(container.labels):
                log.warning("a container imitates our labels", extra={"container_id": container.id})
                continue
            record = self._sandboxes.known(container.labels.get(LABEL_ID, ""))
            if record is not None and record.container_id != container.id and is_being_made(record):
                complete = False  # it may be the one that is being made at this moment
            elif not is_owned(container, self._sandboxes, self._boot):
                await self._runtime.remove(container.id)
                log.info("leftover removed", extra={"container_id": container.id})
        self._metrics.engine.up(True)
        return complete
