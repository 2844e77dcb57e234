"""What roles grant beside numbers: networks, volumes, ports, hosts, commands, tools, runtime classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from enclaved.core.policy import PolicyLimits, PortRange, ToolRule, VolumeRule, built_in_rules
from enclaved.errors import InvalidRequest
from enclaved.model import EMBEDDED, LOCAL, Adjustment, Identity, Mount, Network, PortMapping, Volume
from tests.unit.core.granting import HOME, denied, granted, malformed, policy, role, with_role

# -- the program that embeds a daemon -----------------------------------------------------------------------------


def test_who_embeds_a_daemon_gets_what_it_asks_for_and_all_of_it_is_in_the_spec() -> None:
    spec = granted(
        network_enabled=True,
        volumes=(Volume(f"{HOME}/data", "/data", "ro"), Volume(f"{HOME}//out/./", "/out")),
        ports=(PortMapping("8080", "localhost", 9000), PortMapping("53/udp")),
        extra_hosts={"db.internal": "10.0.0.7"},
        command=("python3", "-m", "http.server"),
        platform="linux/x86_64",
    ).spec

    assert spec.network is Network.BRIDGE
    assert spec.mounts == (Mount(f"{HOME}/data", "/data", True), Mount(f"{HOME}/out", "/out", False))
    assert spec.ports == (PortMapping("8080/tcp", "127.0.0.1", 9000), PortMapping("53/udp", "127.0.0.1", 0))
    assert spec.extra_hosts == {"db.internal": "10.0.0.7"}
    assert spec.command == ("python3", "-m", "http.server")
    assert (spec.platform, spec.role) == ("linux/amd64", "embedded")


def test_who_embeds_a_daemon_and_asks_for_nothing_gets_nothing_of_it() -> None:
    spec = granted().spec
    assert (spec.network, spec.mounts, spec.ports, spec.extra_hosts, spec.command) == (Network.NONE, (), (), {}, ())


@pytest.mark.parametrize("who", [LOCAL, EMBEDDED])
def test_privileged_is_in_no_role(who: Identity) -> None:
    assert denied(who=who, privileged=True).rule == "privileged"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"network": "bridge"}, Network.BRIDGE),
        ({"network": "default", "network_enabled": True}, Network.BRIDGE),
        ({"network": "none", "network_enabled": True}, Network.NONE),
        ({"network": "bridge", "network_enabled": False}, Network.NONE),
        ({"network_enabled": True, "documented_defaults": frozenset({"network_enabled"})}, Network.BRIDGE),
    ],
)
def test_a_network_is_granted_as_it_is_asked_for(asked: dict[str, Any], expected: Network) -> None:
    assert granted(**asked).spec.network is expected


@pytest.mark.parametrize("name", ["host", "container:abc", "mine", "enclaved-0", "ipvlan"])
def test_no_network_but_the_daemons_own_bridge_can_be_had(name: str) -> None:
    for enabled in (None, True):
        error = denied(network=name, network_enabled=enabled)
        assert (error.rule, error.field) == ("network", "spec.network")
    lowered = granted(network=name, documented_defaults=frozenset({"network"}))
    assert lowered.adjustments == (Adjustment("network", name, "none", "network"),)


# -- volumes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/", "//", "/etc", "/etc/passwd", "/proc/1", "/sys", "/dev/sda", "/run", "/var/run/docker.sock", "/var"),
        *("/var/lib/docker", "/var/lib/enclaved/state.db", "/boot", "/home", "/home/me", "/home/me/.enclaved/state"),
        *(HOME, f"{HOME}/run.sock"),
    ],
)
def test_what_no_policy_may_grant_is_refused_even_to_a_role_of_the_whole_disk(path: str) -> None:
    everything = role(volumes=(VolumeRule("/", writable=True),))
    error = denied(with_role(everything), LOCAL, volumes=(Volume(path, "/data", "ro"),))
    assert (error.rule, error.field) == ("volumes", "spec.volumes")
    assert "no policy lets anybody mount" in str(error)


@pytest.mark.parametrize("path", ["/srv", "/home/me/projects", "/home/me/project-2", "/home/you/project", "/mnt/x"])
def test_a_directory_that_only_looks_like_a_granted_one_is_refused_and_the_granted_ones_are_named(path: str) -> None:
    error = denied(volumes=(Volume(path, "/data", "ro"),))
    assert error.rule == "volumes"
    assert HOME in error.limit


@pytest.mark.parametrize(
    "path", [f"{HOME}/../../../etc", f"{HOME}/..", "..", "a/../../b", "", "\0", "/a\nb", "./x", "~/x"]
)
def test_a_path_with_steps_upward_or_without_form_is_malformed(path: str) -> None:
    assert malformed(volumes=(Volume(path, "/data", "ro"),)) == ["spec.volumes[0].host_path"]


@pytest.mark.parametrize(
    "target",
    ["/", "/etc", "/proc", "/tmp/x", "/sandbox", "data", "/a/../etc", "/run/enclaved", "/a,readonly=false", "/a:b"],
)
def test_a_volume_hides_neither_the_system_nor_the_working_directory(target: str) -> None:
    assert malformed(volumes=(Volume(f"{HOME}/a", target),)) == ["spec.volumes[0].bind"]


def test_a_volume_may_lie_in_the_working_directory_and_in_no_other_volume() -> None:
    assert granted(volumes=(Volume(f"{HOME}/a", "/sandbox/data"),)).spec.mounts[0].target == "/sandbox/data"
    twice = (Volume(f"{HOME}/a", "/data"), Volume(f"{HOME}/b", "/data/b"))
    assert malformed(volumes=twice) == ["spec.volumes[1].bind"]
    assert malformed(volumes=(Volume(f"{HOME}/a", "/data", "z"),)) == ["spec.volumes[0].mode"]
    assert malformed(volumes=tuple(Volume(f"{HOME}/a", f"/d{i}") for i in range(17))) == ["spec.volumes"]


def test_the_most_exact_rule_about_a_directory_counts() -> None:
    rules = (VolumeRule("/srv", writable=True), VolumeRule("/srv/models"))
    found = with_role(role(volumes=rules))
    assert not granted(found, LOCAL, volumes=(Volume("/srv/out", "/out"),)).spec.mounts[0].read_only
    error = denied(found, LOCAL, volumes=(Volume("/srv/models/big", "/m"),))
    assert (error.rule, error.limit) == ("volumes", "ro")


def test_a_registered_volume_is_had_by_its_name_only() -> None:
    found = with_role(role(volumes=(VolumeRule("/srv/sets", name="datasets"),)))
    assert granted(found, LOCAL, volumes=(Volume("datasets/mnist", "/data", "ro"),)).spec.mounts == (
        Mount("/srv/sets/mnist", "/data", True),
    )
    for source in ("/srv/sets", "/srv/sets/mnist", "dataset", "datasets2", "sets"):
        assert denied(found, LOCAL, volumes=(Volume(source, "/data", "ro"),)).rule == "volumes"


def test_a_caller_whose_directory_is_the_root_may_mount_nothing() -> None:
    for directory in ("/", "", "relative"):
        found = policy(built_in_rules(PolicyLimits(), working_dir=directory))
        assert denied(found, volumes=(Volume("/srv/x", "/x", "ro"),)).rule == "volumes"


# -- ports, hosts, commands ---------------------------------------------------------------------------------------


def test_ports_need_a_network_the_loopback_address_and_a_granted_number() -> None:
    assert "network_enabled" in str(denied(ports=(PortMapping("80"),)))
    for address in ("0.0.0.0", "", "192.168.1.5", "::"):
        asked: dict[str, Any] = {"network_enabled": True, "ports": (PortMapping("80", address),)}
        if address:
            assert denied(**asked).limit == "127.0.0.1"
        else:
            assert granted(**asked).spec.ports[0].host_address == "127.0.0.1"
    assert denied(network_enabled=True, ports=(PortMapping("80", "127.0.0.1", 80),)).rule == "ports"
    narrow = with_role(role(networks=("none", "bridge"), ports=(PortRange(8000, 8009),)))
    assert denied(narrow, LOCAL, network_enabled=True, ports=(PortMapping("80"),)).limit == "8000-8009"


@pytest.mark.parametrize("port", ["", "0", "65536", "80/sctp", "http", "80/tcp/udp", "٣", "80-90", "080", "8" * 9])
def test_what_is_no_port_is_malformed(port: str) -> None:
    assert malformed(network_enabled=True, ports=(PortMapping(port),)) == ["spec.ports"]


def test_a_port_is_published_once() -> None:
    twice = (PortMapping("80", host_port=9000), PortMapping("81/tcp", host_port=9000))
    assert malformed(ports=twice) == ["spec.ports"]
    assert malformed(ports=(PortMapping("80"), PortMapping("80/tcp"))) == ["spec.ports"]
    assert malformed(ports=(PortMapping("80", host_port=70000),)) == ["spec.ports"]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("localhost", "10.0.0.1"),
        ("a.localhost", "10.0.0.1"),
        ("a b", "10.0.0.1"),
        ("a\n10.0.0.1 b", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("-a", "10.0.0.1"),
        ("a" * 254, "10.0.0.1"),
        ("a", "host-gateway"),
        ("a", "10.0.0.1 evil"),
        ("a", "fe80::1%eth0"),
        ("a", "010.0.0.1"),
    ],
)
def test_a_line_of_the_hosts_file_is_a_name_and_an_address(name: str, address: str) -> None:
    assert malformed(extra_hosts={name: address}) == ["spec.extra_hosts"]


@pytest.mark.parametrize("words", [("",), ("a", "b\0c"), ("\ud800",), ("x" * 70000,), ("x",) * 257])
def test_a_command_that_nobody_could_start_is_malformed(words: tuple[str, ...]) -> None:
    assert malformed(command=words) == ["spec.command"]


# -- environment, tools, runtime classes, numbers -----------------------------------------------------------------


def test_environment_variables_are_granted_by_name() -> None:
    found = with_role(role(env_names=("APP_*", "TZ")))
    assert granted(found, LOCAL, env_vars={"APP_X": "1", "TZ": "UTC"}).spec.env_vars == {"APP_X": "1", "TZ": "UTC"}
    for name in ("HOME", "TZ2", "XAPP_", "app_x"):
        error = denied(found, LOCAL, env_vars={name: "1"})
        assert (error.rule, error.field, error.limit) == ("env", "spec.env_vars", "APP_*, TZ")


def test_tools_are_granted_by_name_and_all_means_all_that_are_granted() -> None:
    found = with_role(role(tools=("python_*",)))
    assert granted(found, LOCAL).spec.tools == {"python_executor": {}}
    assert granted(found, LOCAL, tools={}).spec.tools == {}
    assert denied(found, LOCAL, tools={"bash": {}}).rule == "tools"


def test_options_of_tools_are_allowed_or_forced() -> None:
    rules: Mapping[str, ToolRule] = {
        "python_executor": ToolRule(allowed=("timeout",), forced={"blocked_modules": ["socket"]})
    }
    found = with_role(role(tool_options=rules))
    assert granted(found, LOCAL).spec.tools == {
        "file_operation": {},
        "python_executor": {"blocked_modules": ["socket"]},
        "shell_executor": {},
    }
    asked = {"python_executor": {"timeout": 5, "blocked_modules": ["socket"]}, "bash": {"timeout": 3}}
    assert granted(found, LOCAL, tools=asked).spec.tools == {
        "python_executor": {"timeout": 5, "blocked_modules": ["socket"]},
        "shell_executor": {"timeout": 3},
    }
    error = denied(found, LOCAL, tools={"python_executor": {"blocked_modules": []}})
    assert (error.rule, error.field) == ("tool_options", "spec.tools.python_executor.blocked_modules")
    error = denied(found, LOCAL, tools={"python_executor": {"allowed_modules": ["os"]}})
    assert (error.rule, error.limit) == ("tool_options", "timeout")


def test_runtime_classes_are_those_of_the_operator_that_the_role_has() -> None:
    both = with_role(role(runtime_classes=("runsc", "runc")), runtime_classes=("runsc", "kata"))
    assert granted(both, LOCAL).spec.runtime_class == "runsc"
    assert granted(both, LOCAL, runtime_class="runc").spec.runtime_class == ""
    assert denied(both, LOCAL, runtime_class="kata").rule == "runtime_class"
    with pytest.raises(InvalidRequest):
        granted(both, LOCAL, runtime_class="nope")
    gone = with_role(role(runtime_classes=("runsc",)))
    assert denied(gone, LOCAL).rule == "runtime_class"


def test_room_and_output_have_maxima() -> None:
    mib = 1024 * 1024
    limits = PolicyLimits(
        working_dir_size_max_bytes=64 * mib, tmp_size_max_bytes=8 * mib, output_default_bytes=10, output_max_bytes=100
    )
    found = with_role(role(limits=limits))
    spec = granted(found, LOCAL).spec
    assert (spec.working_dir_size_bytes, spec.tmp_size_bytes) == (64 * mib, 8 * mib)
    assert (spec.output_limit_bytes, spec.output_limit_max_bytes) == (10, 100)
    more = replace(limits, working_dir_size_default_bytes=32 * mib, tmp_size_default_bytes=2 * mib)
    spec = granted(with_role(role(limits=more)), LOCAL).spec
    assert (spec.working_dir_size_bytes, spec.tmp_size_bytes) == (32 * mib, 2 * mib)
    assert denied(found, LOCAL, working_dir_size_bytes=65 * mib).limit == str(64 * mib)
    assert denied(found, LOCAL, tmp_size_bytes=9 * mib).limit == str(8 * mib)
