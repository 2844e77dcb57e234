"""Looks from time to time for what nobody owns, and removes it: what a fault of ours, or of the engine, left behind.

Everything that a daemon makes has an owner: a sandbox that is known, from before the thing is made until after it is
gone. What has none is a leftover. Because containers and files are looked at one after the other while sandboxes come
and go, a thing is removed only when two looks in a row found it without an owner, and a third one at the moment of
its removal as well. A container must prove that it is ours; of files only those count that have names of ours.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from enclaved.core import heap, strays
from enclaved.core.boot import Boot
from enclaved.core.drift import Drift
from enclaved.core.executions import Executions
from enclaved.core.leftovers import is_owned
from enclaved.core.ownership import Ownership
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.state import State, StateUnusable
from enclaved.errors import EnclaveError, EngineRefused
from enclaved.metrics import Metrics
from enclaved.model.leftovers import LeftoverKind
from enclaved.runtime.base import LABEL_OWNER, ContainerRecord, Runtime

log = logging.getLogger(__name__)

LOOK_MOST_S: Final = 300.0
"""How long one look may take."""
REMOVALS_MOST: Final = 64
"""Things of each kind that one look removes; the next one goes on."""
ROWS_MOST: Final = 10_000
"""Rows of executions that one look reads; the next one goes on."""


class Stray(NamedTuple):
    """Something without an owner, told from a later thing of the same name by ``mark``."""

    kind: LeftoverKind
    name: str
    mark: int = 0


class Reaper:
    """Removes what nobody owns.

    It works next to the calls and needs no lock: what it removes has no owner that could use it, and nothing that is
    being made is without one.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        boot: Boot,
        ownership: Ownership,
        sandboxes: Sandboxes,
        executions: Executions,
        state: State,
        metrics: Metrics,
        state_dir: Path,
        every_s: float,
        drift: Drift | None = None,
    ) -> None:
        self._runtime, self._boot, self._ownership = runtime, boot, ownership
        self._sandboxes, self._executions, self._state = sandboxes, executions, state
        self._metrics, self._state_dir, self._every_s = metrics, state_dir, every_s
        self._drift = drift
        self._seen: dict[Stray, int] = {}
        """What the last look found, and how many have found it in a row."""
        self._began = asyncio.get_running_loop().time()
        self._after = ""
        """The execution up to which rows were read."""

    async def run(self) -> None:
        """Looks until the daemon's end: every ``every_s``, give or take a fifth, so that daemons take turns."""
        self._metrics.reaper.began()
        self._began = asyncio.get_running_loop().time()
        while not await self._sandboxes.closes_within(self._every_s * random.uniform(0.8, 1.2)):  # noqa: S311 - spread, not secrecy
            await self.look()

    async def look(self) -> None:
        """Looks once. What goes wrong is logged and counted, and the next look tries again."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(LOOK_MOST_S):
                await self._look()
        except (EnclaveError, StateUnusable, OSError) as error:
            reason = str(error) or f"not done within {LOOK_MOST_S:g} s"
            log.warning("reaper failed; it will try again", extra={"reason": reason})
            self._metrics.reaper.ran(time.perf_counter() - began, error)
        else:
            self._metrics.reaper.ran(time.perf_counter() - began)

    async def _look(self) -> None:
        found = {**await self._containers(), **await self._places(), **self._uids()}
        self._seen = {stray: self._seen.get(stray, 0) + 1 for stray in found}
        due = [stray for stray, looks in self._seen.items() if looks > 1]
        for stray in due:
            if self._seen[stray] == 2:
                self._metrics.reaper.found(stray.kind)
        failures: list[EngineRefused | OSError] = []
        for kind, remove in self._ways().items():
            for stray in [stray for stray in due if stray.kind is kind][:REMOVALS_MOST]:
                if await self._sandboxes.closes_within(0):
                    return
                try:
                    if await remove(found[stray]):
                        self._removed(kind, stray.name)
                except (EngineRefused, OSError) as error:  # the others are to go all the same
                    failures.append(error)
        if self._drift is not None:
            try:
                await self._drift.look()
            except EngineRefused as error:
                failures.append(error)
        for name in await self._boot.networks.sweep():
            self._metrics.reaper.found(LeftoverKind.NETWORK)
            self._removed(LeftoverKind.NETWORK, name)
        self._sweep_sandbox_rows()
        await self._sweep_execution_rows()
        await asyncio.to_thread(heap.give_back)
        if failures:
            raise failures[0]

    def _ways(self) -> Mapping[LeftoverKind, Callable[..., Awaitable[bool]]]:
        return {
            LeftoverKind.CONTAINER: self._remove_container,
            LeftoverKind.DIRECTORY: self._remove_directory,
            LeftoverKind.FILE: self._remove_file,
            LeftoverKind.UID: self._return_uid,
        }

    def _removed(self, kind: LeftoverKind, name: str) -> None:
        self._metrics.reaper.removed(kind)
        log.warning("leftover removed", extra={"kind": kind.value, "leftover": name})

    # -- containers

    async def _containers(self) -> dict[Stray, object]:
        return {
            Stray(LeftoverKind.CONTAINER, container.id): container
            for container in await self._runtime.list_records()
            if container.labels.get(LABEL_OWNER) == self._ownership.owner
            and self._ownership.proves(container.labels)
            and not is_owned(container, self._sandboxes, self._boot)
        }

    async def _remove_container(self, container: ContainerRecord) -> bool:
        if is_owned(container, self._sandboxes, self._boot):
            return False
        await self._runtime.remove(container.id)
        return True

    # -- the state directory

    async def _places(self) -> dict[Stray, object]:
        found = await asyncio.to_thread(lambda: [*strays.directories(self._state_dir)])
        owned = self._directories()
        places: dict[Stray, object] = {_stray(LeftoverKind.DIRECTORY, p): p for p in found if p.path not in owned}
        files = await asyncio.to_thread(lambda: [*strays.half_written(self._state_dir)])
        if all(record.born > self._began for record in self._sandboxes.records):
            current = self._boot.guest_file
            files += await asyncio.to_thread(lambda: [*strays.earlier_guests(self._state_dir, current)])
        return {**places, **{_stray(LeftoverKind.FILE, place): place for place in files}}

    def _directories(self) -> set[Path]:
        return {record.directory for record in (*self._sandboxes.records, *self._boot.canaries.values())}

    async def _remove_directory(self, place: strays.Place) -> bool:
        if place.path in self._directories():
            return False
        await asyncio.to_thread(strays.remove, place)
        return True

    async def _remove_file(self, place: strays.Place) -> bool:
        await asyncio.to_thread(strays.remove, place)
        return True

    # -- user ids

    def _uids(self) -> dict[Stray, object]:
        return {Stray(LeftoverKind.UID, str(uid)): uid for uid in self._boot.uids - self._uids_owned()}

    def _uids_owned(self) -> set[int]:
        return {record.gid for record in (*self._sandboxes.records, *self._boot.canaries.values())}

    async def _return_uid(self, uid: int) -> bool:
        if uid in self._uids_owned():
            return False
        self._boot.return_uid(uid)
        return True

    # -- rows: between a look at them and their removal nothing else happens

    def _sweep_sandbox_rows(self) -> None:
        """Drops rows of sandboxes that are not known. Not while what was dropped may still wait for the disk."""
        if not self._state.names.complete:
            return
        known = {(record.id, record.number) for record in self._sandboxes.records}
        for sandbox_id, number in self._state.names.sandboxes():
            if (sandbox_id, number) not in known:
                self._metrics.reaper.found(LeftoverKind.SANDBOX_ROW)
                self._state.sandboxes.forget(sandbox_id, number)
                self._removed(LeftoverKind.SANDBOX_ROW, sandbox_id)

    async def _sweep_execution_rows(self) -> None:
        """Drops rows of executions that nobody can ask for any more. There may be very many: some with each look."""
        page = await asyncio.to_thread(self._state.names.executions, self._after, ROWS_MOST)
        self._after = page[-1] if len(page) == ROWS_MOST else ""
        suspects = [execution_id for execution_id in page if not self._executions.knows(execution_id)]
        self._executions.settle()  # those that were dropped a moment ago
        if not self._state.names.complete:
            return
        for execution_id in self._state.names.executions_among(suspects):
            if not self._executions.knows(execution_id):
                self._metrics.reaper.found(LeftoverKind.EXECUTION_ROW)
                self._state.executions.forget(execution_id)
                self._removed(LeftoverKind.EXECUTION_ROW, execution_id)


def _stray(kind: LeftoverKind, place: strays.Place) -> Stray:
    return Stray(kind, str(place.path), place.inode)
