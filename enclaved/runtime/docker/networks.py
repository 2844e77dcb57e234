"""The networks of one daemon on one engine: made when they are needed, and looked at before they are used.

There are two. In the *quarantine* nobody answers: it is internal, its bridge has no address, and its members cannot
reach each other. A sandbox starts there. Once its packet filter is set and was read back, it is moved to the network
that leads outside. So there is no moment in which its image's programs, which start before ours, could reach anybody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import aiodocker

from enclaved.errors import EnclaveError, EngineRefused, ImageUnusable
from enclaved.model import PortMapping
from enclaved.runtime.base import LABEL_OWNER, ContainerPlan, NetworkPlan, NetworkRecord
from enclaved.runtime.docker.engine import Engine
from enclaved.runtime.docker.granted import LOOPBACK, checked_ports, network_name, quarantine_name
from enclaved.runtime.docker.guard import filter_arguments, guard_body, refusal

NO_PEERS: Final = "com.docker.network.bridge.enable_icc"
NO_ADDRESS: Final = "com.docker.network.bridge.inhibit_ipv4"
GUARD_S: Final = 30.0
"""How long a guard may take."""
_OPTIONS: Final[Mapping[bool, Mapping[str, str]]] = MappingProxyType(
    {False: {NO_PEERS: "false"}, True: {NO_PEERS: "false", NO_ADDRESS: "true"}}
)
"""By whether it is the quarantine."""
_log = logging.getLogger(__name__)


class Networks:
    """Makes, uses and removes networks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._making = asyncio.Lock()

    async def ensure(self, plan: ContainerPlan, network: NetworkPlan) -> None:
        """Makes the networks that a container needs, unless they are there. Raises `EngineRefused`."""
        async with self._making:
            await self._ensure(quarantine_name(plan.labels), network.labels, quarantine=True)
            await self._ensure(network_name(plan.labels), network.labels, quarantine=False)

    async def join(self, container_id: str, plan: ContainerPlan, network: NetworkPlan) -> tuple[PortMapping, ...]:
        """See `Runtime.join_network`."""
        name, quarantine = network_name(plan.labels), quarantine_name(plan.labels)
        found = await self._inspect(name)
        if found is None:
            raise EngineRefused("give a sandbox a network", f"{name} is gone; try again")
        await self._guard(container_id, plan, network, _gateway(found))
        async with self._engine.calling("give a sandbox a network", self._engine.deadlines.start_s) as docker:
            # By hand: the library's methods have no types.
            for each, change in ((name, "connect"), (quarantine, "disconnect")):
                path, body = f"networks/{each}/{change}", {"Container": container_id}
                await docker._query_json(path, "POST", data=body)  # noqa: SLF001
            seen = await docker._query_json(f"containers/{container_id}/json", "GET")  # noqa: SLF001
        return _published(seen["NetworkSettings"], plan, name)

    async def records(self) -> list[NetworkRecord]:
        """See `Runtime.list_networks`."""
        async with self._engine.calling("list networks", self._engine.deadlines.query_s) as docker:
            found = await docker.networks.list(filters={"label": [LABEL_OWNER]})
        return [NetworkRecord(str(each["Id"]), dict(each.get("Labels") or {})) for each in found]

    async def remove(self, network_id: str) -> bool:
        """See `Runtime.remove_network`."""
        async with self._making, self._engine.calling("remove a network", self._engine.deadlines.remove_s) as docker:
            try:
                async with docker._query(f"networks/{network_id}", "DELETE"):  # noqa: SLF001
                    return True
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return True
                if error.status in (403, 409) and "active endpoints" in error.message:
                    return False
                raise

    async def _ensure(self, name: str, labels: Mapping[str, str], *, quarantine: bool) -> None:
        found = await self._inspect(name)
        if found is None:
            await self._make(name, labels, quarantine=quarantine)
            found = await self._inspect(name)
        why = "it is gone" if found is None else _unsound(found, labels, quarantine=quarantine)
        if why:
            text = f"the network {name} is not as it should be: {why}; remove it with 'docker network rm {name}'"
            raise EngineRefused("give a sandbox a network", text)

    async def _make(self, name: str, labels: Mapping[str, str], *, quarantine: bool) -> None:
        body = {
            "Name": name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "EnableIPv6": False,
            "Internal": quarantine,
            "Attachable": False,
            "Ingress": False,
            "Options": dict(_OPTIONS[quarantine]),
            "Labels": dict(labels),
        }
        async with self._engine.calling("make a network", self._engine.deadlines.create_s) as docker:
            try:
                # The library's own method asks for the network once more.
                await docker._query_json("networks/create", "POST", data=body)  # noqa: SLF001
            except aiodocker.DockerError as error:
                if error.status != 409 or "already exists" not in error.message:
                    raise

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        async with self._engine.calling("look at a network", self._engine.deadlines.query_s) as docker:
            try:
                found: dict[str, Any] = await docker._query_json(f"networks/{name}", "GET")  # noqa: SLF001
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
        return found

    async def _guard(self, container_id: str, plan: ContainerPlan, network: NetworkPlan, gateway: str) -> None:
        """Sets the packet filter of a container that runs. Raises `EngineRefused` if that cannot be shown."""
        wanted = filter_arguments(plan, network, gateway)
        body = guard_body(plan, network, container_id, wanted, await self._engine.facts())
        # To the end, whoever leaves: what is made meanwhile would have nobody to remove it.
        running = asyncio.ensure_future(self._run_guard(body, network.guard.name))
        try:
            code = await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
        if code != 0:
            raise EngineRefused("give a sandbox a network", f"{refusal(code)}; it gets none without one")

    async def _run_guard(self, body: Mapping[str, Any], image: str) -> int:
        deadlines = self._engine.deadlines
        async with self._engine.calling("make a guard", deadlines.create_s, image=image) as docker:
            guard = await docker.containers.create(dict(body))
        try:
            try:
                async with self._engine.calling("start a guard", deadlines.start_s, image=image):
                    await guard.start()
            except ImageUnusable as error:
                text = f"{error}; it is the setting network.guard_image"
                raise EngineRefused("give a sandbox a network", text) from error
            async with self._engine.calling("wait for a guard", GUARD_S):
                ended = await guard.wait()
            return int(ended["StatusCode"])
        finally:
            try:
                async with self._engine.calling("remove a guard", deadlines.remove_s):
                    await guard.delete(force=True, v=True)
            except EnclaveError as error:  # its labels are ours: the next look for leftovers finds it
                _log.warning("a guard is left over", extra={"container": guard.id, "error": str(error)})


def _unsound(found: Mapping[str, Any], labels: Mapping[str, str], *, quarantine: bool) -> str:
    """What is wrong with a network that has the name of ours; nothing if it is as it was made."""
    if found.get("Driver") != "bridge" or found.get("Scope") != "local":
        return "it is no bridge"
    if found.get("EnableIPv6"):
        return "it has IPv6"
    if bool(found.get("Internal")) is not quarantine or found.get("Attachable") or found.get("Ingress"):
        return "it leads elsewhere"
    if dict(found.get("Options") or {}) != _OPTIONS[quarantine]:
        return "it has other options"
    if dict(found.get("Labels") or {}) != dict(labels):
        return "it carries other labels, and so is somebody else's"
    return ""


def _gateway(found: Mapping[str, Any]) -> str:
    for pool in (found.get("IPAM") or {}).get("Config") or ():
        text = str(pool.get("Gateway") or "").partition("/")[0]
        try:
            if ipaddress.ip_address(text).version == 4:
                return text
        except ValueError:
            continue
    raise EngineRefused("give a sandbox a network", "its network has no gateway")


def _published(settings: Mapping[str, Any], plan: ContainerPlan, name: str) -> tuple[PortMapping, ...]:
    """Where the ports are on the host. Raises `EngineRefused` unless all are there, on the loopback, and nothing else.

    ``settings`` is what the engine says of a container's networks.
    """
    if set(settings.get("Networks") or {}) != {name}:
        raise EngineRefused("give a sandbox a network", "it is in another one as well")
    bound = {port: list(places or ()) for port, places in (settings.get("Ports") or {}).items()}
    wanted = checked_ports(plan.spec.ports)
    found = []
    for port in wanted:
        places = bound.pop(port, [])
        if len(places) != 1 or places[0].get("HostIp") != LOOPBACK:
            raise EngineRefused("publish a port", f"{port} is published on {places or 'nothing'}, not on {LOOPBACK}")
        found.append(PortMapping(port, LOOPBACK, int(places[0]["HostPort"])))
    if any(bound.values()):
        raise EngineRefused("publish a port", f"{', '.join(sorted(bound))} was not asked for")
    return tuple(found)
