"""The parts of a create body that a caller may ask for: host directories, ports, a network, lines of /etc/hosts.

Pure. Whatever the plan says, what comes out has one of the forms below, or there is none.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from enclaved.errors import InvalidRequest
from enclaved.model import Network, PortMapping
from enclaved.runtime.base import LABEL_OWNER, ContainerPlan
from enclaved.runtime.docker.paths import clean_path, is_system_path, is_within

MOUNTS_MAX: Final = 16
PORTS_MAX: Final = 32
HOSTS_MAX: Final = 64
LOOPBACK: Final = "127.0.0.1"
RESERVED_TARGETS: Final = ("/tmp",)  # noqa: S108 - a mount point in the container
"""Of these there is a file system of the sandbox's own already. Below them is fine."""

_QUARANTINE: Final = "-quarantine"
_NETWORK = re.compile(rf"enclaved-[0-9a-f]{{8}}({_QUARANTINE})?")
_PORT = re.compile(r"([1-9][0-9]{0,4})(?:/(tcp|udp))?")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,62}))*")


def owner_mark(labels: Mapping[str, str]) -> str:
    """Eight hex digits that tell one daemon's things from another's."""
    return hashlib.sha256(labels.get(LABEL_OWNER, "").encode()).hexdigest()[:8]


def network_name(labels: Mapping[str, str]) -> str:
    """The network of a daemon's sandboxes: the outside, and nobody else."""
    return f"enclaved-{owner_mark(labels)}"


def quarantine_name(labels: Mapping[str, str]) -> str:
    """The network in which a sandbox waits until its packet filter is there: it leads nowhere."""
    return f"{network_name(labels)}{_QUARANTINE}"


def is_network_name(name: str) -> bool:
    """Whether a network has the name of a daemon's."""
    return bool(_NETWORK.fullmatch(name))


def networks_of(mode: str) -> set[str]:
    """The networks in which a container may be, by the mode with which it was made."""
    return {mode, mode.removesuffix(_QUARANTINE)}


def network_fields(plan: ContainerPlan) -> dict[str, Any]:
    """What of the host configuration is about whom the sandbox can talk to."""
    if plan.spec.network is Network.NONE:
        if plan.spec.ports:
            raise InvalidRequest.of("spec.ports", "go with a network only; set network_enabled, or leave them out")
        return {"NetworkMode": "none", "PortBindings": {}, "Dns": [], "ExtraHosts": _engine_hosts(plan)}
    resolvers = plan.network.resolvers if plan.network is not None else ()
    return {
        # It starts where nobody is. See `Networks.join`.
        "NetworkMode": quarantine_name(plan.labels),
        "PortBindings": {
            port: [{"HostIp": LOOPBACK, "HostPort": str(number or "")}]
            for port, number in checked_ports(plan.spec.ports).items()
        },
        "Dns": [_address("network.resolvers", each) for each in resolvers],
        "ExtraHosts": _engine_hosts(plan),
    }


def exposed_ports(plan: ContainerPlan) -> dict[str, Any]:
    """The ports that can be reached from the host, as the engine wants them named beside their bindings."""
    return {port: {} for port in checked_ports(plan.spec.ports)}


def checked_ports(ports: tuple[PortMapping, ...]) -> dict[str, int]:
    """Ports as ``8080/tcp``, with the port of the host (0: any). Raises `InvalidRequest`."""
    found: dict[str, int] = {}
    if len(ports) > PORTS_MAX:
        raise InvalidRequest.of("spec.ports", f"has {len(ports)} entries; at most {PORTS_MAX} are possible")
    for port in ports:
        match = _PORT.fullmatch(port.container_port)
        if match is None or int(match[1]) > 65535:
            text = f"{port.container_port[:32]!a} is no port: write 8080, 8080/tcp or 8080/udp"
            raise InvalidRequest.of("spec.ports", text)
        if port.host_address != LOOPBACK:
            text = f"can be published on {LOOPBACK} only, not on {port.host_address[:64]!a}"
            raise InvalidRequest.of("spec.ports", text)
        if not 0 <= port.host_port <= 65535:
            raise InvalidRequest.of("spec.ports", "a port of the host is 1 to 65535, or 0 for any")
        name = f"{int(match[1])}/{match[2] or 'tcp'}"
        if name in found:
            raise InvalidRequest.of("spec.ports", f"names {name} twice")
        found[name] = port.host_port
    return found


def host_mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    """Mounts of the host's directories and files that were granted.

    Raises `InvalidRequest` where one would hide the system, the sandbox's own file systems or another one.
    """
    if len(plan.spec.mounts) > MOUNTS_MAX:
        text = f"has {len(plan.spec.mounts)} entries; at most {MOUNTS_MAX} are possible"
        raise InvalidRequest.of("spec.volumes", text)
    taken: list[str] = []
    for mount in plan.spec.mounts:
        target = check_target(mount.target, plan.spec.working_dir)
        if clean_path(mount.host_path) != mount.host_path or mount.host_path == "/":
            text = f"{mount.host_path[:80]!a} is not absolute and normalised, or it is the root"
            raise InvalidRequest.of("spec.volumes", text)
        if any(is_within(target, other) or is_within(other, target) for other in taken):
            raise InvalidRequest.of("spec.volumes", f"{target} is mounted twice, or lies in another volume")
        taken.append(target)
    return [
        {
            "Type": "bind",
            "Source": mount.host_path,
            "Target": mount.target,
            "ReadOnly": mount.read_only,
            # What is mounted below it on the host stays out: read-only would not cover it.
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
        }
        for mount in plan.spec.mounts
    ]


def left_volumes(plan: ContainerPlan, volumes: tuple[str, ...]) -> list[str]:
    """The image's volumes, but for those in whose place something of the host is mounted. Raises `InvalidRequest`."""
    targets = {mount.target for mount in plan.spec.mounts}
    for volume in volumes:
        # The engine would make a directory for it on the host.
        above = next((target for target in targets if volume != target and is_within(volume, target)), None)
        if above is not None:
            text = f"the image declares the volume {volume}, which lies in {above}; mount elsewhere, or use {volume}"
            raise InvalidRequest.of("spec.volumes", text)
    return [volume for volume in volumes if volume not in targets]


def check_target(target: str, working_dir: str) -> str:
    """Returns where a volume is to lie. Raises `InvalidRequest`."""
    clean = clean_path(target)
    if clean is None or clean != target or is_system_path(target):
        text = f"{target[:80]!a} is no place for one: use an absolute, normalised path outside the system's"
        raise InvalidRequest.of("spec.volumes", f"{text} directories, as /data")
    if is_within(working_dir, target) or target in RESERVED_TARGETS:
        text = f"{target} would hide a file system of the sandbox's own; mount below it, as {target}/data"
        raise InvalidRequest.of("spec.volumes", text)
    return target


def _engine_hosts(plan: ContainerPlan) -> list[str]:
    """The same for an engine that does not see our files, and writes the sandbox's /etc/hosts itself."""
    hosts = _checked_hosts(plan.spec.extra_hosts)
    return [f"{name}:{address}" for name, address in hosts] if plan.guest_arguments else []


def _checked_hosts(hosts: Mapping[str, str]) -> list[tuple[str, str]]:
    if len(hosts) > HOSTS_MAX:
        raise InvalidRequest.of("spec.extra_hosts", f"has {len(hosts)} entries; at most {HOSTS_MAX} are possible")
    found = []
    for name, address in hosts.items():
        if not _HOST_NAME.fullmatch(name) or name.lower() in ("localhost", "ip6-localhost", "ip6-loopback"):
            raise InvalidRequest.of("spec.extra_hosts", f"{name[:64]!a} is no name of a host, or is ours")
        found.append((name, _address("spec.extra_hosts", address)))
    return found


def _address(field: str, text: str) -> str:
    try:
        # A zone ("fe80::1%eth0") could be anything.
        address = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        raise InvalidRequest.of(field, f"{text[:64]!a} is no address") from None
    return str(address)
