"""A granted network leads outside, and nowhere else: not to the host, not to neighbours, not to private addresses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiodocker
import httpx
import pytest
from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.runtime.docker import detect_engine_url
from enclaved.runtime.docker.granted import network_name
from tests.integration.grants.conftest import GATEWAY, OWNER, House, a_house, python, said
from tests.service.daemons import daemon, settings_in, short_directory
from tests.service.daemons import python as program

REACHED = """
import json, socket
found = {}
for kind, address, port in %r:
    with socket.socket(socket.AF_INET, getattr(socket, kind)) as probe:
        probe.settimeout(2)
        try:
            probe.connect((address, port))
            probe.send(b'knock')
            found[f'{kind} {address} {port}'] = 'reached' if kind == 'SOCK_STREAM' else 'sent'
        except OSError as error:
            found[f'{kind} {address} {port}'] = type(error).__name__
print(json.dumps(found))
"""


@dataclass
class Listener(asyncio.DatagramProtocol):
    """Listens on every address of the host, by TCP and UDP, and notes who comes."""

    heard: list[str] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append(f"udp {addr[0]}")

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a connection."""
        self.heard.append(f"tcp {writer.get_extra_info('peername')[0]}")
        self.came.set()
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    """A service on the host that any container on a bridge could reach without a filter."""
    listener = Listener()
    server = await asyncio.start_server(listener.greet, "0.0.0.0", 0)
    listener.port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: listener, local_addr=("0.0.0.0", listener.port))
    try:
        yield listener
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


async def test_neither_the_host_nor_a_neighbour_is_reached(house: House):
    # A service of the neighbour's own, which a filter of its own keeps from everybody as well.
    serve = "python3 -m http.server 8080"
    one, two = await asyncio.gather(
        house.sandbox(network_enabled=True), house.sandbox(network_enabled=True, command=serve)
    )
    network = (await house.inspect(two.id))["NetworkSettings"]["Networks"]
    neighbour, gateway = (next(iter(network.values()))[key] for key in ("IPAddress", "Gateway"))
    # On its own side of the filter the neighbour answers.
    inside = "until python3 -c \"import socket; socket.create_connection(('127.0.0.1', 8080))\"; do :; done 2>/dev/null"
    await said(two, inside)
    async with listening() as listener:
        aims = [
            ("SOCK_STREAM", gateway, listener.port),
            ("SOCK_DGRAM", gateway, listener.port),
            ("SOCK_STREAM", neighbour, 8080),
            ("SOCK_DGRAM", neighbour, 8080),
        ]
        found = json.loads(await python(one, REACHED % aims))
        assert listener.heard == []
        # The listener can be heard at all: from the host itself.
        with socket.create_connection((gateway, listener.port)):
            pass
        async with asyncio.timeout(30):
            await listener.came.wait()
    assert set(found.values()) == {"TimeoutError", "PermissionError"}
    assert "reached" not in found.values()


async def test_the_sandbox_has_one_interface_no_names_of_others_and_no_way_to_change_the_filter(house: House):
    sandbox = await house.sandbox(network_enabled=True, extra_hosts={"db.internal": "10.1.2.3"})
    shown = await house.inspect(sandbox.id)
    owner = network_name(shown["Config"]["Labels"])
    assert list(shown["NetworkSettings"]["Networks"]) == [owner]
    assert {each.removeprefix("CAP_") for each in shown["HostConfig"]["CapAdd"]} == {"KILL", "SETGID", "SETUID"}
    interfaces = await said(sandbox, "ls /proc/sys/net/ipv4/conf")
    assert len(set(interfaces.split()) - {"all", "default", "lo"}) == 1
    assert await said(sandbox, "cat /proc/net/if_inet6 | grep -vc lo || true") == "0"
    assert "10.1.2.3 db.internal" in await said(sandbox, "cat /etc/hosts")
    assert "127.0.0.11" not in await said(sandbox, "cat /etc/resolv.conf")
    code = """
import socket
for family, kind, protocol in ((16, 3, 12), (17, 3, 0), (2, 3, 1)):
    try:
        with socket.socket(family, kind, protocol) as probe:
            if family == 16:
                probe.bind((0, 0))
                head = bytes.fromhex('140000001000050001000000000000000000000a')
                probe.send(head)
                print(int.from_bytes(probe.recv(64)[16:20], 'little', signed=True))
    except OSError as error:
        print(error.errno)
"""
    netlink, packets, raw = (int(line) for line in (await python(sandbox, code)).split())
    assert (abs(netlink), packets, raw) == (1, 1, 1)


async def test_a_port_is_published_on_the_loopback_and_reaches_the_command(house: House):
    """The documented ``ports`` and ``command`` together: a web server."""
    serve = "python3 -m http.server 8080 --directory /sandbox"
    sandbox = await house.sandbox(network_enabled=True, ports={"8080/tcp": None, "9090/udp": None}, command=serve)
    await said(sandbox, "echo hello > /sandbox/page")
    ports = (await sandbox.refresh()).metadata["ports"]
    assert [address for address, _ in ports.values()] == ["127.0.0.1"] * 2
    port = ports["8080/tcp"][1]
    async with httpx.AsyncClient() as client, asyncio.timeout(60):
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/page")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)  # until the server listens
    assert answer.text == "hello\n"
    assert 'interventions_total{what="network_connected"} 0.0' in (await house.running.get("/metrics"))[1]
    bound = (await house.inspect(sandbox.id))["NetworkSettings"]["Ports"]
    assert {place["HostIp"] for places in bound.values() for place in places} == {"127.0.0.1"}


async def test_a_chosen_host_port_is_taken_and_one_that_is_in_use_is_an_error(house: House):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnclaveError, match=r"address already in use|port is already allocated"):
            await house.sandbox(network_enabled=True, ports={"8080": taken.getsockname()[1]})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sandbox = await house.sandbox(network_enabled=True, ports={"8080": port})
    assert (await sandbox.refresh()).metadata["ports"] == {"8080/tcp": ("127.0.0.1", port)}


async def test_networks_are_there_while_a_sandbox_needs_them(house: House):
    assert await house.networks() == []
    sandbox = await house.sandbox(network_enabled=True)
    names = await house.networks()
    assert len(names) == 2
    other = await house.sandbox(network_enabled=True)
    await house.manager.delete_sandbox(sandbox.id)
    assert await house.networks() == names
    await house.manager.stop_sandbox(other.id)
    assert await house.networks() == []
    await other.start()
    assert await house.networks() == names
    assert (await sandbox_networks(house, other.id)) == names[:1]


async def sandbox_networks(house: House, sandbox_id: str) -> list[str]:
    """The networks in which a sandbox is."""
    return sorted((await house.inspect(sandbox_id))["NetworkSettings"]["Networks"])


async def test_a_network_of_our_name_that_is_not_as_ours_is_not_used(house: House):
    sandbox = await house.sandbox(network_enabled=True)
    (name, _) = await house.networks()
    await house.manager.delete_sandbox(sandbox.id)
    planted = await house.engine.networks.create({"Name": name, "Driver": "bridge"})
    try:
        with pytest.raises(EnclaveError, match="not as it should be: it has other options"):
            await house.sandbox(network_enabled=True)
    finally:
        await planted.delete()


async def test_without_a_guard_there_is_no_sandbox(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("enclaved.runtime.docker.guard._source", lambda: "import sys; sys.exit(1)")
    with pytest.raises(EnclaveError, match=r"Operation not permitted.*gets none without one"):
        await house.sandbox(network_enabled=True)
    assert await house.manager.list_sandboxes() == []
    assert await house.networks() == []


async def test_an_engine_that_does_not_see_our_files_gives_networks_too_but_no_volumes(
    folder: Path, default_image: str
):
    async with a_house(folder, engine__channel="attach") as house:
        sandbox = await house.sandbox(network_enabled=True, extra_hosts={"db.internal": "10.1.2.3"})
        assert "10.1.2.3" in await said(sandbox, "cat /etc/hosts")
        aims = [("SOCK_DGRAM", await python(sandbox, f"{GATEWAY}print(gateway)"), 9)]
        assert set(json.loads(await python(sandbox, REACHED % aims)).values()) == {"PermissionError"}
        with pytest.raises(EnclaveError, match="sees this machine's files"):
            await house.sandbox(volumes={str(house.place("data")): {"bind": "/data", "mode": "ro"}})


async def test_what_was_granted_is_no_drift(folder: Path, default_image: str):
    async with a_house(folder, daemon__reap_every_s="0.05") as house:
        place = house.place("data", owner=OWNER)
        volumes = {str(place): {"bind": "/data", "mode": "rw"}}
        sandbox = await house.sandbox(network_enabled=True, ports={"80": None}, volumes=volumes, command="sleep 600")
        before = await looks(house)
        async with asyncio.timeout(60):
            while await looks(house) < before + 3:
                await sandbox.refresh()  # which takes its time, and shows that it is there
        assert (await sandbox.refresh()).status.value == "running"
        assert "enclaved_sandbox_drifts_total 0.0" in (await house.running.get("/metrics"))[1]


class NameServer(asyncio.DatagramProtocol):
    """Answers everybody with where the question came from."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data + b" " + addr[0].encode(), addr)


ASK = """
import socket
answers = []
for port in (53, 54):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(20)
        try:
            probe.sendto(b'who', (%r, port))
            answers.append(probe.recv(100).decode().split()[0])
        except OSError as error:
            answers.append(type(error).__name__)
print(*answers)
"""


async def test_a_name_server_is_asked_across_networks_although_all_else_there_is_closed(
    folder: Path, default_image: str
):
    """What leaves a sandbox for another network gets there, and the answer back."""
    async with aiodocker.Docker(detect_engine_url()) as engine:
        other = await engine.networks.create({"Name": f"{folder.name}-other", "Driver": "bridge"})
        try:
            address = (await other.show())["IPAM"]["Config"][0]["Gateway"]
            loop = asyncio.get_running_loop()
            servers = [await loop.create_datagram_endpoint(NameServer, local_addr=(address, port)) for port in (53, 54)]
            try:
                async with a_house(folder, dns=[address]) as house:
                    sandbox = await house.sandbox(network_enabled=True)
                    assert await said(sandbox, "cat /etc/resolv.conf") == f"nameserver {address}"
                    assert await python(sandbox, ASK % address) == "who PermissionError"
            finally:
                for transport, _ in servers:
                    transport.close()
        finally:
            await other.delete()


async def looks(house: House) -> float:
    """How often the daemon has looked at everything."""
    text = (await house.running.get("/metrics"))[1]
    return float(text.partition('enclaved_reaper_runs_total{outcome="ok"} ')[2].split()[0])


POLICY = """
[roles.default]
networks = ["none", "bridge"]
"""


async def test_a_network_outlives_a_daemon_that_leaves_its_sandboxes(default_image: str):
    """The next daemon goes on with it, and takes it away with the last sandbox in it."""
    async with short_directory() as home, aiodocker.Docker(detect_engine_url()) as engine:
        (home / "policy.toml").write_text(POLICY)
        settings = settings_in(home, daemon__keep_sandboxes_on_stop="true", policy__file=str(home / "policy.toml"))
        wanted = sandbox_pb.SandboxSpec(network_enabled=True, memory_limit_bytes=192 * 2**20)
        async with daemon(settings, runtime=None) as running:
            request = sandbox_pb.CreateSandboxRequest(sandbox_id="box", spec=wanted)
            await running.sandbox_stub.CreateSandbox(request)
            house = House(running, LocalSandboxManager(), home, engine)
        names = await house.networks()
        assert len(names) == 2
        async with daemon(settings, runtime=None) as running:
            code = f"{GATEWAY}socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (gateway, 9))"
            answer = await running.execution_stub.Run(execution_pb.RunRequest(spec=program(code)))
            assert b"PermissionError" in answer.stderr
            assert await house.networks() == names
            await running.sandbox_stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box", wait=True))
            assert await house.networks() == []
