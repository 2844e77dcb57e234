"""What a sandbox may have to do with networks: the network itself, ports on the host, names of hosts. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from enclaved.core.policy.docket import Docket
from enclaved.core.spec_fields import shown
from enclaved.errors import FieldViolation
from enclaved.model import Network, PortMapping, SandboxRequest

PORTS_MAX: Final = 32
EXTRA_HOSTS_MAX: Final = 64
LOOPBACK: Final = "127.0.0.1"

_PORT = re.compile(r"([1-9][0-9]{0,4})(?:/(tcp|udp))?")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST_NAME_MAX: Final = 253
_LOOPBACK_NAMES: Final = ("", LOOPBACK, "localhost")
_BRIDGES: Final = ("bridge", "default")
"""What callers call the network that they may get."""


def malformed_connections(request: SandboxRequest) -> Iterator[FieldViolation]:
    """Finds what is wrong with wanted ports and hosts, whatever the policy says of them."""
    if len(request.ports) > PORTS_MAX:
        yield FieldViolation("spec.ports", f"has {len(request.ports)} entries; at most {PORTS_MAX} are possible")
    elif problem := next(_port_problems(request.ports), None):
        yield FieldViolation("spec.ports", problem)
    if len(request.extra_hosts) > EXTRA_HOSTS_MAX:
        text = f"has {len(request.extra_hosts)} entries; at most {EXTRA_HOSTS_MAX} are possible"
        yield FieldViolation("spec.extra_hosts", text)
        return
    for name, address in request.extra_hosts.items():
        if problem := _host_problem(name, address):
            yield FieldViolation("spec.extra_hosts", problem)


def decide_network(docket: Docket) -> Network:
    """Decides on the network. One that only a documented default asks for is switched off instead of refused."""
    request, granted = docket.request, docket.role.networks
    name = request.network or ""
    lowered = request.documented_defaults
    if (name == "host" or name.startswith("container:")) and "network" not in lowered:
        text = f"no policy grants the network {shown(name)}: it is the host's own, or another container's"
        docket.refuse("network", "networks", "network", name, f"{text}; leave network out", ", ".join(granted))
    is_granted = Network.BRIDGE.value in granted
    # Naming a network while asking for none is asking for none, and asking for one by name is asking for one.
    wants = request.network_enabled is True or (request.network_enabled is None and name not in ("", "none"))
    if not wants or (name == "none" and is_granted):
        docket.grant("networks", "network", request.network, Network.NONE.value)
        return Network.NONE
    is_known = name in ("", "none", *_BRIDGES)
    if is_known and is_granted:
        docket.grant("networks", "network", name or "enabled", Network.BRIDGE.value)
        return Network.BRIDGE
    if request.network_enabled and not is_granted:
        _switch_off(docket, "network_enabled", "true", "false", "this daemon grants no network")
    if name not in ("", "none"):
        _switch_off(docket, "network", name, "none", f"this daemon grants no network such as {shown(name)}")
    return Network.NONE


def _switch_off(docket: Docket, field: str, asked: str, granted: str, text: str) -> None:
    if field in docket.request.documented_defaults:
        docket.lower("network", "networks", field, asked, granted)
    else:
        limit = ", ".join(docket.role.networks)
        docket.refuse("network", "networks", field, asked, f"{text}; leave {field} out", limit)


def decide_ports(docket: Docket, network: Network) -> tuple[PortMapping, ...]:
    """Decides on the ports of a well-formed request. They are published on the loopback address only."""
    ranges = docket.role.ports
    found: list[PortMapping] = []
    for port in docket.request.ports:
        asked = f"{port.container_port} on {port.host_address}:{port.host_port or 'any'}"
        limit = ", ".join("any" if each.last == 0 else str(each) for each in ranges)
        text = ""
        if not ranges:
            text = "this daemon publishes no ports"
        elif port.host_address not in _LOOPBACK_NAMES:
            text, limit = f"ports are published on {LOOPBACK} only, not on {shown(port.host_address)}", LOOPBACK
        elif not any(port.host_port in each for each in ranges):
            port_text = str(port.host_port) if port.host_port else "that the engine chooses"
            text = f"the host port {port_text} is not granted, only {limit}"
        elif network is Network.NONE:
            text, limit = "ports are published of a sandbox with a network only; set network_enabled", ""
        if text:
            docket.refuse("ports", "ports", "ports", asked, f"{text}; or leave ports out", limit)
            continue
        number, protocol = _parts(port.container_port)
        found.append(PortMapping(f"{number}/{protocol}", LOOPBACK, port.host_port))
        docket.grant("ports", "ports", asked, f"{number}/{protocol} on {LOOPBACK}:{port.host_port or 'any'}")
    return tuple(found)


def decide_extra_hosts(docket: Docket) -> dict[str, str]:
    """Decides on the lines of /etc/hosts of a well-formed request."""
    wanted = docket.request.extra_hosts
    if not wanted:
        return {}
    asked = ", ".join(f"{name}={address}" for name, address in wanted.items())[:200]
    if not docket.role.extra_hosts:
        text = "this daemon grants no lines of /etc/hosts; leave extra_hosts out"
        docket.refuse("extra_hosts", "extra_hosts", "extra_hosts", asked, text)
        return {}
    docket.grant("extra_hosts", "extra_hosts", asked, asked)
    return {name: str(ipaddress.ip_address(address)) for name, address in wanted.items()}


def _parts(container_port: str) -> tuple[int, str]:
    found = _PORT.fullmatch(container_port)
    return (int(found[1]), found[2] or "tcp") if found else (0, "tcp")


def _port_problems(ports: tuple[PortMapping, ...]) -> Iterator[str]:
    inside: set[tuple[int, str]] = set()
    outside: set[tuple[int, str]] = set()
    for port in ports:
        number, protocol = _parts(port.container_port)
        if not 1 <= number <= 65535:
            yield f"{shown(port.container_port)} is no port: write 8080, 8080/tcp or 8080/udp"
        if not 0 <= port.host_port <= 65535:
            yield f"the host port {port.host_port} must be from 0 to 65535, where 0 is the engine's choice"
        if (number, protocol) in inside or (port.host_port and (port.host_port, protocol) in outside):
            yield f"{shown(port.container_port)} or its host port {port.host_port} is named twice"
        inside.add((number, protocol))
        outside.add((port.host_port, protocol))


def _host_problem(name: str, address: str) -> str | None:
    if len(name) > _HOST_NAME_MAX or not _HOST_NAME.fullmatch(name):
        return f"{shown(name)} is no name of a host"
    if name == "localhost" or name.endswith(".localhost"):
        return f"{shown(name)} is the sandbox itself; choose another name"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"{shown(address)} is no address, such as 10.0.0.5"
    scoped = isinstance(found, ipaddress.IPv6Address) and found.scope_id
    return f"{shown(address)} has a zone, which means nothing in a sandbox" if scoped else None
