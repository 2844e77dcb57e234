"""The networks of this daemon's sandboxes: there while one of them needs them, and not longer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enclaved.core.ownership import Ownership
from enclaved.core.record import SandboxRecord
from enclaved.core.surroundings import host_addresses, resolvers
from enclaved.errors import EnclaveError, ImageNotFound
from enclaved.model import Network
from enclaved.runtime.base import LABEL_OWNER, NetworkPlan, NetworkRecord, Runtime

log = logging.getLogger(__name__)

NO_SANDBOX: Final = ""
"""In the place of a sandbox's id, in the labels of a network."""


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What the operator says of networks."""

    guard_image: str
    """The image in which packet filters are set."""
    dns: tuple[str, ...] = ()
    """Name servers of sandboxes; empty: those of the host."""
    may_pull: bool = True


class SandboxNetworks:
    """Plans networks, and removes them when nobody needs them any more."""

    def __init__(self, runtime: Runtime, ownership: Ownership, settings: NetworkSettings) -> None:
        self._runtime, self._ownership, self._settings = runtime, ownership, settings
        self._users: set[SandboxRecord] = set()
        self._changing = asyncio.Lock()

    async def plan(self, record: SandboxRecord) -> NetworkPlan | None:
        """Decides on the network of a sandbox that is about to be made; ``None`` if it has none.

        The daemon's networks stay from now on until `leave`. Raises `ImageNotFound`, and what `Runtime` raises.
        """
        if record.spec.network is Network.NONE:
            return None
        async with self._changing:
            self._users.add(record)
        image = self._settings.guard_image
        try:
            guard = await self._runtime.resolve_image(image, may_pull=self._settings.may_pull)
        except ImageNotFound as error:
            text = f"{error}; without it no sandbox gets a network (it is the setting network.guard_image)"
            raise ImageNotFound(image, text) from error
        found = await asyncio.to_thread(lambda: (resolvers(self._settings.dns), host_addresses()))
        if not found[0]:
            log.warning("no name server for sandboxes; set network.dns", extra={"sandbox_id": record.id})
        return NetworkPlan(guard, self._labels(), *found)

    def take_up(self, record: SandboxRecord) -> None:
        """Knows of a sandbox of an earlier daemon."""
        if record.spec.network is not Network.NONE and record.container_id is not None:
            self._users.add(record)

    async def leave(self, record: SandboxRecord) -> None:
        """A sandbox has no container any more. Whoever is the last one has the networks removed."""
        if record in self._users:
            self._users.discard(record)
            try:
                await self.sweep()
            except EnclaveError as error:  # the reaper looks for them as well
                log.info("networks left for now", extra={"reason": str(error)})

    async def sweep(self) -> Sequence[str]:
        """Removes the daemon's networks if no sandbox needs them; returns their ids. Raises what `Runtime` raises."""
        async with self._changing:
            return [] if self._users else await remove_networks(self._runtime, self._ownership)

    def _labels(self) -> dict[str, str]:
        return self._ownership.labels(NO_SANDBOX, 0)


def owned_networks(networks: Sequence[NetworkRecord], ownership: Ownership) -> list[NetworkRecord]:
    """Those networks that were provably made under a key."""
    return [
        network
        for network in networks
        if network.labels.get(LABEL_OWNER) == ownership.owner and ownership.proves(network.labels)
    ]


async def remove_networks(runtime: Runtime, ownership: Ownership) -> list[str]:
    """Removes the networks that were made under a key and that no container uses; returns their ids."""
    networks = owned_networks(await runtime.list_networks(), ownership)
    return [network.id for network in networks if await runtime.remove_network(network.id)]
