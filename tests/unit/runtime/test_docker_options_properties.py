"""Whatever the plan says, the create body stays within the profile, or there is none."""

from __future__ import annotations

import ipaddress
import json
import posixpath
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.errors import ImageUnusable, InvalidRequest
from enclaved.model import Mount, Network, PortMapping, SandboxSpec
from enclaved.runtime.base import ContainerPlan, GuestSettings, Image, NetworkPlan
from enclaved.runtime.docker.facts import EngineFacts
from enclaved.runtime.docker.guard import filter_arguments, guard_body
from enclaved.runtime.docker.options import create_body
from enclaved.runtime.docker.packet_filter import rules

OWN_TARGETS = {"/etc/group", "/etc/hosts", "/etc/passwd", "/run/enclave/guest.py", "/run/enclave/socket"}
FORBIDDEN_TREES = ("/proc", "/sys", "/dev", "/run/enclave")
TMPFS = re.compile(
    r"rw,(exec|noexec),nosuid,nodev,size=[1-9]\d*,nr_inodes=[1-9]\d*,(mode=1777|uid=[1-9]\d*,gid=[1-9]\d*,mode=0700)"
)

names = st.one_of(st.sampled_from(["PATH", "LANG", "LD_PRELOAD", "PYTHONPATH"]), st.text(max_size=10))
texts = st.text(max_size=30)
good_numbers = st.integers(1, 2**34)
good_paths = st.sampled_from(["/sandbox", "/data", "/tmp", "/tmp/x", "/var/lib/x", "/a,size=9g", "/ä b:c"])
wild_numbers = st.one_of(st.sampled_from([-1, 0, 1]), st.integers())
wild_paths = st.one_of(
    st.sampled_from(["/", "/etc", "/proc", "/dev/shm", "//x/../y", "/run", "/usr"]),
    st.lists(st.sampled_from(["a", "..", ".", "", "etc", "run", "enclave", "proc"]), max_size=5).map(
        lambda parts: "/" + "/".join(parts)
    ),
    st.text(max_size=20),
)

good_mounts = st.sampled_from(
    [
        (),
        (Mount("/srv/data", "/mnt/data", read_only=True),),
        (Mount("/srv/data", "/mnt/data", read_only=True), Mount("/home/me/out", "/mnt/out", read_only=False)),
    ]
)
good_ports = st.lists(st.integers(1, 65535), max_size=4, unique=True).map(
    lambda numbers: tuple(PortMapping(f"{number}/tcp", "127.0.0.1", number) for number in numbers)
)
addresses = st.one_of(st.ip_addresses(v=4).map(str), st.sampled_from(["10.0.0.53", "192.0.2.1", "fd00::1"]))
good_hosts = st.dictionaries(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True), addresses, max_size=3)
wild_texts = st.one_of(
    texts,
    addresses,
    st.sampled_from(
        ["host-gateway", "0.0.0.0", "host", "container:x", "8080/tcp", "80-90/tcp", "0", "-1", "1.2.3.4/0"]
    ),
)
wild_mounts = st.lists(st.builds(Mount, wild_paths, st.one_of(wild_paths, good_paths), st.booleans()), max_size=3)
wild_ports = st.lists(st.builds(PortMapping, wild_texts, wild_texts, wild_numbers), max_size=3)


@st.composite
def granted(draw, base, *, wild):
    """Plans of ``base`` with a network, mounts, ports and hosts."""
    plan = draw(base)
    network = draw(st.sampled_from(Network))
    ports = draw(wild_ports.map(tuple) if wild else good_ports if network is not Network.NONE else st.just(()))
    spec = replace(
        plan.spec,
        network=network,
        mounts=draw(wild_mounts.map(tuple) if wild else good_mounts),
        ports=ports,
        extra_hosts=draw(st.dictionaries(wild_texts, wild_texts, max_size=3) if wild else good_hosts),
        command=draw(st.lists(texts, max_size=2).map(tuple)),
        platform=draw(st.sampled_from(["", "linux/amd64"])),
        role=draw(texts),
    )
    some = st.lists(wild_texts if wild else addresses, max_size=3).map(tuple)
    planned = NetworkPlan(guard=draw(base).image, labels={}, resolvers=draw(some), host_addresses=draw(some))
    return replace(plan, spec=spec, network=planned if network is not Network.NONE else None)


def plans(numbers, paths, cpus):
    """Plans with these numbers and paths, and anything in all other fields."""
    return st.builds(
        ContainerPlan,
        image=st.builds(
            Image,
            id=texts,
            name=texts,
            env=st.dictionaries(names, texts, max_size=4),
            volumes=st.lists(paths, max_size=4).map(tuple),
        ),
        spec=st.builds(
            SandboxSpec,
            image=texts,
            memory_limit_bytes=numbers,
            cpu_limit=cpus,
            pids_limit=numbers,
            working_dir_size_bytes=numbers,
            tmp_size_bytes=numbers,
            shm_size_bytes=numbers,
            working_dir=paths,
            env_vars=st.dictionaries(names, texts, max_size=3),
            tools=st.none(),
            timeout_s=st.floats(),
            timeout_max_s=st.floats(),
            ttl_s=st.floats(),
            remove_on_exit=st.booleans(),
        ),
        settings=st.builds(
            GuestSettings,
            sandbox_id=texts,
            uid=numbers,
            working_dir=paths,
            expires_in_s=st.floats(),
            daemon_absence_s=st.floats(),
            memory_limit_bytes=numbers,
            open_files_limit=numbers,
            file_size_limit_bytes=numbers,
        ),
        guest_file=texts.map(Path),
        socket_dir=texts.map(Path),
        account_dir=texts.map(Path),
        group_id=numbers,
        labels=st.dictionaries(texts, texts, max_size=3),
    )


engines = st.builds(
    EngineFacts,
    cgroup_driver=st.sampled_from(["cgroupfs", "systemd"]),
    cgroup_version=st.sampled_from([1, 2]),
    cpus=st.integers(1, 512),
)


@given(plan=plans(good_numbers, good_paths, st.floats(0.01, 1000)), facts=engines)
@settings(max_examples=150, deadline=None)
def test_every_sound_plan_gets_the_profile_and_nothing_else(plan: ContainerPlan, facts: EngineFacts):
    assert_profile(create_body(plan, facts), plan, facts)


@given(plan=plans(st.one_of(good_numbers, wild_numbers), st.one_of(good_paths, wild_paths), st.floats()), facts=engines)
@settings(max_examples=300, deadline=None)
def test_every_other_plan_gets_the_profile_or_is_refused(plan: ContainerPlan, facts: EngineFacts):
    try:
        body = create_body(plan, facts)
    except (InvalidRequest, ImageUnusable):
        return
    assert_profile(body, plan, facts)


SOUND = plans(good_numbers, good_paths, st.floats(0.01, 1000))
CONTAINER = "c" * 64


@given(plan=granted(SOUND, wild=False), facts=engines)
@settings(max_examples=150, deadline=None)
def test_every_sound_grant_keeps_the_profile_and_opens_nothing_else(plan: ContainerPlan, facts: EngineFacts):
    assert_profile(create_body(plan, facts), plan, facts)
    if plan.network is not None:
        assert_guard(plan, plan.network, facts)


@given(plan=granted(SOUND, wild=True), facts=engines)
@settings(max_examples=300, deadline=None)
def test_every_other_grant_keeps_the_profile_or_is_refused(plan: ContainerPlan, facts: EngineFacts):
    try:
        body = create_body(plan, facts)
        assert_profile(body, plan, facts)
        if plan.network is not None:
            assert_guard(plan, plan.network, facts)
    except (InvalidRequest, ImageUnusable):
        return


def assert_guard(plan: ContainerPlan, network: NetworkPlan, facts: EngineFacts) -> None:
    wanted = filter_arguments(plan, network, "172.20.0.1")
    body, sandbox = guard_body(plan, network, CONTAINER, wanted, facts), create_body(plan, facts)
    assert set(body) == set(sandbox) - {"Hostname", "ExposedPorts"}
    host = body["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"], host["NetworkMode"]) == (["ALL"], ["NET_ADMIN"], f"container:{CONTAINER}")
    assert (host["Mounts"], host["PortBindings"], body["Cmd"]) == ([], {}, [])
    same = set(host) - {"CapAdd", "NetworkMode", "Mounts", "PortBindings", "Tmpfs", "Memory", "MemorySwap", "PidsLimit"}
    assert {key: host[key] for key in same} == {key: sandbox["HostConfig"][key] for key in same}
    assert host["Memory"] == host["MemorySwap"] > 0 < host["PidsLimit"]
    assert body["Entrypoint"][:5] == ["python3", "-I", "-S", "-E", "-c"]
    assert body["Image"] == network.guard.id
    # What reaches the guard are addresses and numbers, in a filter that the kernel understands.
    told = json.loads(wanted)
    for each in (*told["hidden"], *told["resolvers"], *told["closed"], told["gateway"]):
        assert ipaddress.IPv4Network(each)
    assert all(name in ("tcp", "udp") and 0 < number < 65536 for name, number in told["ports"])
    assert len(list(rules(told))) >= len(told["closed"])


def assert_network(host: dict[str, Any], body: dict[str, Any], plan: ContainerPlan) -> None:
    is_networked = plan.spec.network is not Network.NONE
    assert body["NetworkDisabled"] is not is_networked
    assert re.fullmatch(r"enclaved-[0-9a-f]{8}-quarantine" if is_networked else "none", host["NetworkMode"])
    assert set(body["ExposedPorts"]) == set(host["PortBindings"])
    assert len(host["PortBindings"]) == len(plan.spec.ports)
    for port, places in host["PortBindings"].items():
        assert is_networked
        assert re.fullmatch(r"[1-9]\d{0,4}/(tcp|udp)", port)
        assert [place["HostIp"] for place in places] == ["127.0.0.1"]
        assert re.fullmatch(r"([1-9]\d{0,4})?", places[0]["HostPort"])
    for address in host["Dns"]:
        assert ipaddress.ip_address(address)
    assert host["ExtraHosts"] == []


def assert_profile(body: dict[str, Any], plan: ContainerPlan, facts: EngineFacts) -> None:
    host = body["HostConfig"]

    # The keys are a closed list: a new one has to be argued for here.
    assert set(body) == {
        *("Image", "User", "Entrypoint", "Cmd", "Env", "WorkingDir", "Labels", "Healthcheck", "StopSignal"),
        "ExposedPorts",
        *(
            "Hostname",
            "NetworkDisabled",
            "Tty",
            "OpenStdin",
            "StdinOnce",
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "HostConfig",
        ),
    }
    assert (body["OpenStdin"], body["StdinOnce"], body["Tty"]) == (False, False, False)
    assert re.fullmatch(r"0:\d+", body["User"])
    assert body["Entrypoint"][0] == "python3"
    assert body["Entrypoint"][4] == "/run/enclave/guest.py"
    assert body["Cmd"] == []
    assert [entry.partition("=")[0] for entry in body["Env"] if "=" in entry][:2] == ["PATH", "LANG"]

    assert host["Privileged"] is False
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["SETUID", "SETGID", "KILL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert_network(host, body, plan)
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("none", "private")
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    for empty in (
        *("Binds", "VolumesFrom", "Devices", "DeviceRequests", "DeviceCgroupRules", "Sysctls", "GroupAdd"),
        "Links",
    ):
        assert not host[empty], empty
    assert host["PublishAllPorts"] is False
    assert "Runtime" not in host

    own = OWN_TARGETS | ({"/etc/resolv.conf"} if plan.spec.network is not Network.NONE else set())
    theirs = [m for m in host["Mounts"] if m["Target"] not in own]
    assert {m["Target"] for m in host["Mounts"]} - {m["Target"] for m in theirs} == own
    assert len(host["Mounts"]) == len(own) + len(plan.spec.mounts)
    assert all(m["ReadOnly"] is True for m in host["Mounts"] if m["Target"] in own)
    assert all(m["Type"] == "bind" for m in host["Mounts"])
    for mount, wanted in zip(theirs, plan.spec.mounts, strict=True):
        assert (mount["Source"], mount["Target"]) == (wanted.host_path, wanted.target)
        assert mount["ReadOnly"] is wanted.read_only
        assert mount["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}
        assert mount["Source"] == posixpath.normpath(mount["Source"]) not in ("/", "//", ".")
        assert not any(f"{mount['Target']}/".startswith(f"{tree}/") for tree in (*FORBIDDEN_TREES, "/etc/hosts"))
        assert not f"{plan.spec.working_dir}/".startswith(f"{mount['Target']}/")
    assert host["ReadonlyRootfs"] is True
    for target, options in host["Tmpfs"].items():
        assert target == posixpath.normpath(target)
        assert target == "/dev/shm" or not any(f"{target}/".startswith(f"{tree}/") for tree in FORBIDDEN_TREES)
        assert TMPFS.fullmatch(options), options
    assert {"/tmp", "/dev/shm", plan.spec.working_dir} <= set(host["Tmpfs"])
    covered = set(host["Tmpfs"]) | {m["Target"] for m in theirs}
    assert {posixpath.normpath("/" + v.lstrip("/")) for v in plan.image.volumes} <= covered

    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert 0 < host["NanoCpus"] <= facts.cpus * 1_000_000_000
    assert host["OomKillDisable"] is False
    assert all(u["Soft"] == u["Hard"] >= 0 for u in host["Ulimits"])
    assert host["CgroupParent"] in ("/enclaved", "enclaved.slice")
    assert host["LogConfig"]["Type"] == "none"
