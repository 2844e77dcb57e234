"""What an engine tells of its containers while it happens.

The library's own events go through a queue without a bound, and end without saying why.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from enclaved.errors import EngineRefused
from enclaved.runtime.base import ContainerChange, ContainerEvent
from enclaved.runtime.docker.errors import docker_errors
from enclaved.runtime.docker.granted import is_network_name

OPERATION: Final = "tell what happens to containers"
_CHANGES: Final[Mapping[str, ContainerChange]] = MappingProxyType(
    {
        "kill": ContainerChange.SIGNALLED,
        "die": ContainerChange.ENDED,
        "stop": ContainerChange.STOPPED,
        "restart": ContainerChange.RESTARTED,
        "destroy": ContainerChange.REMOVED,
        "oom": ContainerChange.OUT_OF_MEMORY,
        "pause": ContainerChange.PAUSED,
        "unpause": ContainerChange.RESUMED,
        "update": ContainerChange.UPDATED,
        "rename": ContainerChange.RENAMED,
        "exec_create": ContainerChange.COMMAND_RUN,
        "archive-path": ContainerChange.FILES_COPIED,
        "extract-to-dir": ContainerChange.FILES_COPIED,
        "connect": ContainerChange.NETWORK_CONNECTED,
    }
)
_NO_NETWORK: Final = "null"
"""The type of the network that every container without one has."""


def query(since_ns: int) -> dict[str, str]:
    """The parameters of the request."""
    asked = {"filters": json.dumps({"type": ["container", "network"], "event": list(_CHANGES)})}
    if since_ns:
        asked["since"] = f"{since_ns // 10**9}.{since_ns % 10**9:09d}"
    return asked


async def read_events(response: aiohttp.ClientResponse, engine_url: str) -> AsyncIterator[ContainerEvent]:
    """Reads an engine's answer for as long as it lasts. Raises `EngineUnavailable`, `EngineRefused`."""
    while True:
        with docker_errors(OPERATION, engine_url):
            try:
                line = await response.content.readline()
            except ValueError as error:  # aiohttp's limit
                raise EngineRefused(OPERATION, "an event is too long to be read") from error
        if not line:
            return
        event = parse(line)
        if event is not None:
            yield event


def parse(line: bytes) -> ContainerEvent | None:
    """Reads one event; ``None`` for what is of no interest or makes no sense."""
    try:
        told = json.loads(line)
        actor, at_ns = told["Actor"], told["timeNano"]
        attributes: Mapping[str, Any] = actor.get("Attributes") or {}
        change = _CHANGES.get(str(told["Action"]).partition(":")[0])
        container_id = attributes["container"] if told["Type"] == "network" else actor["ID"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if change is None or not isinstance(container_id, str) or type(at_ns) is not int:
        return None
    if change is ContainerChange.NETWORK_CONNECTED and _is_our_doing(attributes):
        return None
    return ContainerEvent(container_id, change, at_ns)


def _is_our_doing(attributes: Mapping[str, Any]) -> bool:
    """Whether a container was given what daemons give to sandboxes: no network, or one of those with our names."""
    return attributes.get("type") == _NO_NETWORK or is_network_name(str(attributes.get("name")))
