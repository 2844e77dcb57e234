"""What a caller may ask for, in the body of a container and of the guard of its network."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from enclaved.errors import InvalidRequest
from enclaved.model import Mount, Network, PortMapping
from enclaved.runtime.base import LABEL_OWNER, NetworkPlan
from enclaved.runtime.docker.guard import CLOSED, filter_arguments, guard_body, refusal
from enclaved.runtime.docker.options import create_body

CONTAINER = "c" * 64


@pytest.fixture
def networked(plan, with_spec):
    network = NetworkPlan(
        guard=replace(plan.image, id="sha256:" + "b" * 64, env={"PATH": "/usr/bin", "LD_PRELOAD": "/evil.so"}),
        labels={LABEL_OWNER: "d" * 32},
        resolvers=("10.0.0.53", "fd00::53"),
        host_addresses=("198.18.7.7", "203.0.113.9"),
    )

    def make(**fields):
        return replace(with_spec(network=Network.BRIDGE, **fields), network=network)

    return make


def test_a_granted_network_begins_in_the_quarantine_with_pinned_name_servers(networked, facts):
    body = create_body(networked(ports=(PortMapping("8080"), PortMapping("53/udp", host_port=5353))), facts)
    assert body["NetworkDisabled"] is False
    assert body["HostConfig"]["NetworkMode"].endswith("-quarantine")
    assert body["HostConfig"]["Dns"] == ["10.0.0.53", "fd00::53"]
    assert body["HostConfig"]["PortBindings"] == {
        "8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}],
    }
    assert body["ExposedPorts"] == {"8080/tcp": {}, "53/udp": {}}
    assert "/etc/resolv.conf" in [mount["Target"] for mount in body["HostConfig"]["Mounts"]]


def test_granted_mounts_are_private_and_leave_out_what_is_mounted_below_them(with_spec, facts):
    mounts = (Mount("/srv/data", "/data", read_only=True), Mount("/srv/out", "/sandbox/out", read_only=False))
    body = create_body(with_spec(mounts=mounts), facts)
    granted = [mount for mount in body["HostConfig"]["Mounts"] if mount["Source"].startswith("/srv/data")]
    assert granted == [
        {
            "Type": "bind",
            "Source": "/srv/data",
            "Target": "/data",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
        }
    ]
    assert body["HostConfig"]["Mounts"][-1]["ReadOnly"] is False


def test_a_granted_mount_takes_the_place_of_the_images_volume(with_image, facts):
    plan = with_image(volumes=("/data", "/more"))
    plan = replace(plan, spec=replace(plan.spec, mounts=(Mount("/srv/data", "/data", read_only=True),)))
    assert {"/more"} == create_body(plan, facts)["HostConfig"]["Tmpfs"].keys() & {"/data", "/more"}


@pytest.mark.parametrize(
    "mount",
    [
        Mount("/srv", "/sandbox", read_only=False),
        Mount("/srv", "/tmp", read_only=False),
        Mount("/srv", "/", read_only=True),
        Mount("/srv", "/etc", read_only=True),
        Mount("/srv", "/usr/bin", read_only=True),
        Mount("/srv", "/run/enclave/x", read_only=True),
        Mount("/srv", "/proc/self", read_only=True),
        Mount("/srv", "/dev/shm", read_only=True),
        Mount("/srv", "/a/../etc", read_only=True),
        Mount("/srv", "data", read_only=True),
        Mount("/", "/data", read_only=True),
        Mount("srv", "/data", read_only=True),
        Mount("/srv/../etc", "/data", read_only=True),
        Mount("/srv\n", "/data", read_only=True),
    ],
)
def test_a_mount_that_hides_the_system_or_names_no_clear_path_is_refused(with_spec, facts, mount):
    with pytest.raises(InvalidRequest) as caught:
        create_body(with_spec(mounts=(mount,)), facts)
    assert [violation.field for violation in caught.value.violations] == ["spec.volumes"]


def test_mounts_in_one_another_and_image_volumes_in_mounts_are_refused(plan, with_image, with_spec, facts):
    mounts = (Mount("/srv/a", "/data", read_only=True), Mount("/srv/b", "/data/b", read_only=True))
    with pytest.raises(InvalidRequest, match="lies in another volume"):
        create_body(with_spec(mounts=mounts), facts)
    inner = with_image(volumes=("/data/db",))
    with pytest.raises(InvalidRequest, match="which lies in /data"):
        create_body(replace(inner, spec=replace(inner.spec, mounts=mounts[:1])), facts)
    with pytest.raises(InvalidRequest, match="sees this machine's files"):
        create_body(replace(with_spec(mounts=mounts[:1]), guest_arguments=("x",)), facts)


@pytest.mark.parametrize(
    "port",
    [
        PortMapping("0"),
        PortMapping("65536"),
        PortMapping("80/sctp"),
        PortMapping("80-90"),
        PortMapping(""),
        PortMapping("80", host_address="0.0.0.0"),
        PortMapping("80", host_port=-1),
        PortMapping("80", host_port=65536),
    ],
)
def test_what_is_no_port_on_the_loopback_is_refused(networked, facts, port):
    with pytest.raises(InvalidRequest):
        create_body(networked(ports=(port,)), facts)


def test_ports_without_a_network_and_ports_named_twice_are_refused(with_spec, networked, facts):
    with pytest.raises(InvalidRequest, match="with a network only"):
        create_body(with_spec(ports=(PortMapping("80"),)), facts)
    with pytest.raises(InvalidRequest, match="twice"):
        create_body(networked(ports=(PortMapping("80"), PortMapping("80/tcp"))), facts)


@pytest.mark.parametrize(
    "hosts",
    [
        {"db": "host-gateway"},
        {"db": "10.0.0.1\n10.0.0.2 other"},
        {"db\n": "10.0.0.1"},
        {"localhost": "10.0.0.1"},
        {"a b": "10.0.0.1"},
        {"db": "fe80::1%eth0"},
        {f"h{number}": "10.0.0.1" for number in range(65)},
    ],
)
def test_hosts_are_names_and_addresses_and_nothing_else(with_spec, facts, hosts):
    with pytest.raises(InvalidRequest):
        create_body(with_spec(extra_hosts=hosts), facts)


def test_only_an_engine_that_does_not_see_our_files_is_told_of_hosts(with_spec, facts):
    plan = with_spec(extra_hosts={"db.internal": "10.0.0.1"})
    assert create_body(plan, facts)["HostConfig"]["ExtraHosts"] == []
    attached = create_body(replace(plan, guest_arguments=("x",)), facts)
    assert attached["HostConfig"]["ExtraHosts"] == ["db.internal:10.0.0.1"]


def test_the_guard_has_the_sandboxes_profile_but_for_its_one_capability(networked, facts):
    plan = networked(ports=(PortMapping("8080"),), mounts=(Mount("/srv/data", "/data", read_only=False),))
    body, sandbox = guard_body(plan, plan.network, CONTAINER, "{}", facts), create_body(plan, facts)
    host = body["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_ADMIN"])
    assert (host["Mounts"], host["PortBindings"]) == ([], {})
    assert host["NetworkMode"] == f"container:{CONTAINER}"
    assert body["Image"] == plan.network.guard.id
    assert body["User"] == "0:0"
    assert body["Env"] == ["PATH=/usr/bin", "LANG=C.UTF-8", "LD_PRELOAD"]
    assert body["Entrypoint"][:5] == ["python3", "-I", "-S", "-E", "-c"]
    assert body["Labels"] == sandbox["Labels"]
    changed = {key for key in host if host[key] != sandbox["HostConfig"].get(key)}
    assert changed == {
        *("CapAdd", "Mounts", "NetworkMode", "PortBindings", "Tmpfs"),
        *("Memory", "MemorySwap", "PidsLimit"),
    }
    assert sandbox["HostConfig"].keys() - host.keys() == {"Dns", "ExtraHosts"}


def test_the_filter_closes_private_addresses_and_the_hosts_own(networked):
    wanted = json.loads(filter_arguments(networked(ports=(PortMapping("53/udp"),)), networked().network, "172.20.0.1"))
    assert wanted == {
        "hidden": ["127.0.0.11/32"],
        "resolvers": ["10.0.0.53/32"],  # of IPv6 everything is closed
        "closed": [*CLOSED, "172.20.0.1/32", "198.18.7.7/32", "203.0.113.9/32"],
        "gateway": "172.20.0.1/32",
        "ports": [["udp", 53]],
    }
    attached = replace(networked(), guest_arguments=("x",))
    assert json.loads(filter_arguments(attached, attached.network, "172.20.0.1"))["hidden"] == []


def test_a_filter_is_made_of_addresses_only(networked):
    plan = networked()
    for odd in (replace(plan.network, resolvers=("1.1.1.1; rm",)), replace(plan.network, host_addresses=("x",))):
        with pytest.raises(InvalidRequest):
            filter_arguments(plan, odd, "172.20.0.1")
    with pytest.raises(InvalidRequest, match="no gateway"):
        filter_arguments(plan, plan.network, "fd00::1")


@pytest.mark.parametrize(
    ("code", "text"),
    [(1, "Operation not permitted"), (250, "does not show"), (251, "not understood"), (137, "was killed (signal 9)")],
)
def test_a_guard_that_fails_is_explained(code, text):
    assert text in refusal(code)
