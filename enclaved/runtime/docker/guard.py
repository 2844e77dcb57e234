"""The guard: a container that lives for a moment in a sandbox's network, to set its packet filter.

It gets the sandbox's profile with one capability, NET_ADMIN, in the place of the guest's three, and nothing of the
host, of the caller or of the sandbox's image. The sandbox itself never has that capability, so what the guard sets
stays. Pure.
"""

from __future__ import annotations

import ipaddress
import json
import os
from functools import cache
from importlib import resources
from typing import Any, Final

from enclaved.errors import InvalidRequest
from enclaved.runtime.base import ContainerPlan, NetworkPlan
from enclaved.runtime.docker.facts import EngineFacts
from enclaved.runtime.docker.granted import checked_ports
from enclaved.runtime.docker.options import DEFAULT_PATH, create_body
from enclaved.runtime.docker.packet_filter import DIFFERENT, NOT_UNDERSTOOD

GUARD_CAPABILITIES: Final = ("NET_ADMIN",)
MEMORY_BYTES: Final = 64 * 1024 * 1024
PIDS: Final = 16
ENGINE_RESOLVER: Final = "127.0.0.11/32"
"""Where an engine answers names of other containers. Sandboxes that have a resolv.conf of ours need it not."""
CLOSED: Final = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)
"""Private, shared, link-local, loopback, multicast and reserved addresses: everything that is not the outside."""
_KILLED: Final = 128
"""Exit codes above it are signals. There are errno above it, too, but none that the packet filter knows."""
_LEFT_OUT: Final = ("Hostname", "ExposedPorts", "Healthcheck")


def guard_body(plan: ContainerPlan, network: NetworkPlan, container_id: str, wanted: str, facts: EngineFacts) -> Any:
    """The complete create body of the guard of a container. ``wanted`` is what `filter_arguments` makes."""
    body = create_body(plan, facts)
    host = body["HostConfig"]
    # The engine refuses a name and ports of its own to a container that joins another one's network.
    guard = {key: value for key, value in body.items() if key not in _LEFT_OUT}
    return {
        **guard,
        "Image": network.guard.id,
        "User": "0:0",
        "Entrypoint": ["python3", "-I", "-S", "-E", "-c", _source(), wanted],
        "Env": [
            f"PATH={network.guard.env.get('PATH') or DEFAULT_PATH}",
            "LANG=C.UTF-8",
            *sorted(name for name in network.guard.env if name and name not in ("PATH", "LANG")),
        ],
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": False,
        "OpenStdin": False,
        "HostConfig": {
            **{key: value for key, value in host.items() if key not in ("Dns", "ExtraHosts")},
            "CapAdd": list(GUARD_CAPABILITIES),
            "Tmpfs": dict.fromkeys(network.guard.volumes, "rw,noexec,nosuid,nodev,size=65536"),
            "Mounts": [],
            "NetworkMode": f"container:{container_id}",
            "PortBindings": {},
            "Memory": MEMORY_BYTES,
            "MemorySwap": MEMORY_BYTES,
            "PidsLimit": PIDS,
        },
    }


def filter_arguments(plan: ContainerPlan, network: NetworkPlan, gateway: str) -> str:
    """What the packet filter is to be, for `packet_filter.main`. Raises `InvalidRequest` for what is no address."""
    ports = [name.split("/") for name in checked_ports(plan.spec.ports)]
    host_end = _single(gateway) or _no_gateway()
    return json.dumps(
        {
            "hidden": [] if plan.guest_arguments else [ENGINE_RESOLVER],
            "resolvers": [each for each in map(_single, network.resolvers) if each],
            # The gateway may be newer than what is known of the host, and an engine's networks need not be private.
            "closed": [*CLOSED, host_end, *(each for each in map(_single, network.host_addresses) if each)],
            "gateway": host_end,
            "ports": [[protocol, int(number)] for number, protocol in ports],
        }
    )


def refusal(code: int) -> str:
    """Why a guard failed, by its exit code."""
    if code == DIFFERENT:
        return "the kernel does not show the packet filter that it was given"
    if code == NOT_UNDERSTOOD:
        return "what the kernel says of its packet filter is not understood"
    if code > _KILLED:
        return f"what was to set the packet filter was killed (signal {code - _KILLED})"
    return f"the kernel refused the packet filter ({os.strerror(code)})"


@cache
def _source() -> str:
    return resources.files("enclaved.runtime.docker").joinpath("packet_filter.py").read_text(encoding="utf-8")


def _single(address: str) -> str:
    """An address of IPv4 as a network, and nothing for one of IPv6, of which all is closed."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise InvalidRequest.of("network", f"{address[:64]!a} is no address") from None
    return f"{found}/32" if found.version == 4 else ""


def _no_gateway() -> str:
    raise InvalidRequest.of("network", "has no gateway of IPv4")
