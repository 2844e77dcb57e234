"""Compares the containers of sandboxes that run with what was made, so that nobody weakens one unnoticed.

A container cannot change much while it lives, but whoever may use the engine can change something: what starts it
again, its networks, its limits. Limits are put back; any other change ends the sandbox, with the field's name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from enclaved.core.boot import Boot
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import EngineRefused
from enclaved.metrics import Metrics
from enclaved.model import EMPTY, Network
from enclaved.runtime.base import ContainerPlan, GuestSettings
from enclaved.runtime.inspection import Deviation, Inspector

log = logging.getLogger(__name__)

LOOKS_MOST: Final = 256
"""Sandboxes that one look compares; the next one goes on."""
LIMITS: Final = frozenset({"HostConfig.Memory", "HostConfig.MemorySwap", "HostConfig.NanoCpus", "HostConfig.PidsLimit"})


class Drift:
    """Looks at containers one after the other, a bounded number each time."""

    def __init__(self, *, inspector: Inspector, sandboxes: Sandboxes, boot: Boot, metrics: Metrics) -> None:
        self._inspector, self._sandboxes = inspector, sandboxes
        self._boot, self._metrics = boot, metrics
        self._after = -1

    async def look(self) -> None:
        """Compares some sandboxes.

        Raises `EngineUnavailable`, and `EngineRefused` after the others if one of them cannot be compared.
        """
        due = sorted(self._sandboxes.with_containers(), key=lambda record: record.number)
        page = [record for record in due if record.number > self._after][:LOOKS_MOST]
        self._after = page[-1].number if len(page) == LOOKS_MOST else -1
        refused: EngineRefused | None = None
        for record in page:
            if await self._sandboxes.closes_within(0):
                return
            try:
                await self._compare(record)
            except EngineRefused as error:
                refused = error
        if refused is not None:
            raise refused

    async def _compare(self, record: SandboxRecord) -> None:
        """Compares one sandbox, which nobody changes meanwhile; one that is busy changing waits for the next look."""
        if record.lock.locked():
            return
        async with record.lock:
            classes = self._boot.runtime_classes
            plan = record.plan or _plan_of_earlier(record, classes.engine_runtime(record.spec))
            container_id = record.container_id
            if plan is None or container_id is None or record not in self._sandboxes.with_containers():
                return
            found = await self._inspector.deviations(container_id, replace(plan, spec=classes.realised(record.spec)))
            if found and all(one.field in LIMITS for one in found):
                await self._put_back(record, found)
                return
        if found and record.container_id == container_id:
            self._end(record, found)

    async def _put_back(self, record: SandboxRecord, found: Sequence[Deviation]) -> None:
        log.warning(
            "limits changed behind us; putting them back",
            extra={"sandbox_id": record.id, "found": "; ".join(map(str, found))},
        )
        try:
            await self._boot.limit(record)
        except EngineRefused as error:
            log.warning("limits not put back", extra={"sandbox_id": record.id, "reason": str(error)})

    def _end(self, record: SandboxRecord, found: Sequence[Deviation]) -> None:
        text = "; ".join(str(one) for one in found[:3])
        self._metrics.sandboxes.drifted()
        log.error("sandbox is not isolated as it was made; ending it", extra={"sandbox_id": record.id, "found": text})
        self._sandboxes.lose(record, f"its container was changed: {text}")


def _plan_of_earlier(record: SandboxRecord, engine_runtime: str) -> ContainerPlan | None:
    """Stands for the plan of an earlier daemon, of which paths and networks are not known any more.

    What depends on paths is not compared then, and a sandbox with a network not at all.
    """
    spec, image = record.spec, record.image
    if image is None or spec.network is not Network.NONE:
        return None
    nowhere = Path("/")
    return ContainerPlan(
        image=replace(image, id=""),
        spec=spec,
        settings=GuestSettings(
            sandbox_id=record.id,
            uid=record.uid,
            gid=record.gid,
            working_dir=spec.working_dir,
            expires_in_s=0.0,
            daemon_absence_s=0.0,
            memory_limit_bytes=spec.memory_limit_bytes,
        ),
        guest_file=nowhere,
        socket_dir=nowhere,
        account_dir=nowhere,
        group_id=os.getegid(),
        labels=EMPTY,
        engine_runtime=engine_runtime,
    )
