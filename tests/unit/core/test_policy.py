"""What policy grants, lowers and refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from enclaved.core.policy import Admission, Policy, PolicyLimits, execution_timeout
from enclaved.core.tmpfs import HEAP_RESERVE_BYTES
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import Adjustment, PortMapping, SandboxRequest, SandboxSpec, Volume
from enclaved.tools.registry import ToolRegistry
from tests.unit.core.asking import GIB, LIMITS, MIB, admit, denied, granted, malformed

# -- defaults -----------------------------------------------------------------------------------------------------


def test_a_request_for_nothing_gets_the_defaults() -> None:
    admission = admit()

    assert admission == Admission(
        SandboxSpec(
            image="python:3.11-slim",
            memory_limit_bytes=512 * MIB,
            cpu_limit=1.0,
            pids_limit=256,
            working_dir_size_bytes=128 * MIB,
            tmp_size_bytes=64 * MIB,
            shm_size_bytes=16 * MIB,
            working_dir="/sandbox",
            env_vars={},
            tools=None,
            timeout_s=30.0,
            timeout_max_s=3600.0,
            ttl_s=86400.0,
            remove_on_exit=True,
            role="default",
        ),
        (),
    )


def test_what_is_asked_for_within_the_limits_is_granted_as_it_is() -> None:
    spec = granted(
        image="registry.example:5000/team/image@sha256:" + "a" * 64,
        memory_limit_bytes=2 * GIB,
        cpu_limit=0.5,
        pids_limit=1024,
        working_dir_size_bytes=GIB,
        tmp_size_bytes=512 * MIB,
        working_dir="/home/user-1/work.d",
        env_vars={"NAME": "va=lue\n", "_x": "é"},
        timeout_s=3600,
        ttl_s=604800,
        remove_on_exit=False,
    )

    assert spec.image.startswith("registry.example:5000/")
    assert (spec.memory_limit_bytes, spec.cpu_limit, spec.pids_limit) == (2 * GIB, 0.5, 1024)
    assert (spec.working_dir_size_bytes, spec.tmp_size_bytes, spec.shm_size_bytes) == (GIB, 512 * MIB, 16 * MIB)
    assert spec.working_dir == "/home/user-1/work.d"
    assert spec.env_vars == {"NAME": "va=lue\n", "_x": "é"}
    assert (spec.timeout_s, spec.ttl_s, spec.remove_on_exit) == (3600.0, 604800.0, False)


def test_a_timeout_of_zero_asks_for_the_longest() -> None:
    assert granted(timeout_s=0).timeout_s == 3600.0


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "memory_limit_bytes",
        "cpu_limit",
        "pids_limit",
        "working_dir_size_bytes",
        "tmp_size_bytes",
        "timeout_s",
        "ttl_s",
    ],
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, 1e99, 10**400, True, "5 apples"])
def test_a_number_that_is_none_is_malformed_and_named(field: str, value: object) -> None:
    assert list(malformed(**{field: value})) == [f"spec.{field}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_limit_bytes", 0),
        ("memory_limit_bytes", 64 * MIB - 1),
        ("memory_limit_bytes", 512.5 * MIB),
        ("cpu_limit", 0),
        ("cpu_limit", 0.04),
        ("pids_limit", 0),
        ("pids_limit", 31),
        ("working_dir_size_bytes", 0),
        ("tmp_size_bytes", 1),
        ("ttl_s", 0),
    ],
)
def test_too_little_to_work_with_is_malformed(field: str, value: object) -> None:
    found = malformed(**{field: value})

    assert list(found) == [f"spec.{field}"]
    assert "at least" in found[f"spec.{field}"]


def test_the_least_that_works_is_named_in_full() -> None:
    assert malformed(memory_limit_bytes=0) == {
        "spec.memory_limit_bytes": "must be a whole number of bytes, at least 67108864; leave it out for the default"
    }


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("memory_limit_bytes", 4 * GIB + 1, 4 * GIB),
        ("cpu_limit", 2.01, 2.0),
        ("pids_limit", 1025, 1024),
        ("timeout_s", 3601, 3600.0),
        ("ttl_s", 604801, 604800.0),
    ],
)
def test_more_than_the_maximum_is_denied_with_the_limit(field: str, value: float, limit: float) -> None:
    error = denied(**{field: value})

    assert (error.rule, error.field, error.limit) == ("resources", f"spec.{field}", str(limit))
    assert str(value) in str(error)


def test_more_than_the_maximum_is_lowered_where_it_is_a_documented_default() -> None:
    small = PolicyLimits(memory_default_bytes=256 * MIB, memory_max_bytes=GIB, cpu_max=1.0)

    admission = admit(
        small,
        memory_limit_bytes=4 * GIB,
        cpu_limit=2.0,
        documented_defaults=frozenset({"memory_limit_bytes", "cpu_limit"}),
    )

    assert (admission.spec.memory_limit_bytes, admission.spec.cpu_limit) == (GIB, 1.0)
    assert admission.adjustments == (
        Adjustment("memory_limit_bytes", str(4 * GIB), str(GIB), "resources"),
        Adjustment("cpu_limit", "2.0", "1.0", "resources"),
    )


def test_a_documented_default_within_the_limits_is_no_adjustment() -> None:
    admission = admit(memory_limit_bytes=4 * GIB, documented_defaults=frozenset({"memory_limit_bytes"}))

    assert admission.spec.memory_limit_bytes == 4 * GIB
    assert admission.adjustments == ()


# -- file systems in memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_bytes", "sizes"),
    [
        (4 * GIB, (128 * MIB, 64 * MIB, 16 * MIB)),
        (512 * MIB, (128 * MIB, 64 * MIB, 16 * MIB)),
        (256 * MIB, (64 * MIB, 32 * MIB, 8 * MIB)),
        (128 * MIB, (32 * MIB, 16 * MIB, 4 * MIB)),
    ],
)
def test_default_file_systems_shrink_with_the_memory_limit(memory_bytes: int, sizes: tuple[int, int, int]) -> None:
    spec = granted(memory_limit_bytes=memory_bytes)

    assert (spec.working_dir_size_bytes, spec.tmp_size_bytes, spec.shm_size_bytes) == sizes


def test_the_smallest_sandbox_keeps_the_reserve_for_programs() -> None:
    spec = granted(memory_limit_bytes=64 * MIB)

    assert spec.working_dir_size_bytes + spec.tmp_size_bytes + spec.shm_size_bytes <= 64 * MIB - HEAP_RESERVE_BYTES
    assert spec.shm_size_bytes >= MIB


def test_file_systems_that_do_not_fit_are_malformed_and_the_text_says_how_much_would() -> None:
    found = malformed(working_dir_size_bytes=400 * MIB)
    assert list(found) == ["spec.working_dir_size_bytes"]
    assert str((400 + 64 + 16 + 48) * MIB) in found["spec.working_dir_size_bytes"]

    both = malformed(memory_limit_bytes=GIB, working_dir_size_bytes=900 * MIB, tmp_size_bytes=100 * MIB)
    assert list(both) == ["spec.working_dir_size_bytes", "spec.tmp_size_bytes"]

    exact = granted(working_dir_size_bytes=(512 - 64 - 16 - 48) * MIB)
    assert exact.working_dir_size_bytes == 384 * MIB


# -- privileges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "rule", "field"),
    [
        ({"privileged": True}, "privileged", "privileged"),
        ({"network_enabled": True}, "network", "network_enabled"),
        ({"network": "bridge"}, "network", "network"),
        ({"network": "host"}, "network", "network"),
        ({"network": "host", "network_enabled": False}, "network", "network"),
        ({"network": "container:abc"}, "network", "network"),
        ({"volumes": (Volume("/", "/host"),)}, "volumes", "volumes"),
        ({"volumes": (Volume("/var/run/docker.sock", "/s", "ro"),)}, "volumes", "volumes"),
        ({"ports": (PortMapping("8080/tcp"),)}, "ports", "ports"),
        ({"extra_hosts": {"db": "10.0.0.1"}}, "extra_hosts", "extra_hosts"),
        ({"command": ("sleep", "1")}, "command", "command"),
        ({"platform": "linux/arm64"}, "platform", "platform"),
        ({"platform": "windows/amd64"}, "platform", "platform"),
        ({"platform": "x\ud800\n" * 1000}, "platform", "platform"),
    ],
)
def test_what_no_default_policy_grants_is_refused_by_rule(asked: dict[str, Any], rule: str, field: str) -> None:
    error = denied(**asked)

    assert (error.rule, error.field) == (rule, f"spec.{field}")
    assert f"leave {field} out" in str(error)
    assert len(str(error).encode()) < 400


def test_the_refusals_of_privilege_and_host_network_say_that_no_policy_grants_them() -> None:
    assert "no policy grants privileged" in str(denied(privileged=True))
    assert "no policy grants the network 'host'" in str(denied(network="host"))


@pytest.mark.parametrize(
    "asked",
    [
        {"privileged": False},
        {"network_enabled": False},
        {"network_enabled": False, "network": "bridge"},
        {"network": "none"},
        {"network": ""},
        {"platform": ""},
        {"platform": "linux"},
    ],
)
def test_asking_for_what_everybody_has_is_fine(asked: dict[str, Any]) -> None:
    assert admit(**asked) == admit()


@pytest.mark.parametrize("name", ["linux/amd64", "linux/x86_64", "amd64"])
def test_the_engines_own_platform_is_granted_in_one_spelling(name: str) -> None:
    assert admit(platform=name) == Admission(replace(granted(), platform="linux/amd64"), ())


def test_each_machine_knows_its_own_platform() -> None:
    arm = Policy(LIMITS, ToolRegistry.built_in(), machine="aarch64")

    for platform in ("linux/arm64", "linux/arm64/v8", "arm64"):
        arm.admit(SandboxRequest(platform=platform))
    with pytest.raises(PolicyDenied, match="this engine runs linux/arm64"):
        arm.admit(SandboxRequest(platform="linux/amd64"))


def test_a_network_that_is_a_documented_default_is_switched_off_and_shown() -> None:
    admission = admit(
        network_enabled=True, network="bridge", documented_defaults=frozenset({"network_enabled", "network"})
    )

    assert admission.spec == granted()
    assert admission.adjustments == (
        Adjustment("network_enabled", "true", "false", "network"),
        Adjustment("network", "bridge", "none", "network"),
    )
    assert denied(network_enabled=True, network="bridge", documented_defaults=frozenset({"network"})).rule == "network"
    assert denied(network_enabled=True, network="mine", documented_defaults=frozenset({"network_enabled"})).rule == (
        "network"
    )


# -- timeouts of executions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested_s", "tool_s", "expected_s"),
    [
        (None, None, 30.0),
        (None, 5.0, 5.0),
        (7.0, 5.0, 7.0),
        (0.0, 5.0, 3600.0),
        (None, 0.0, 3600.0),
        (0.001, None, 0.001),
        (3600.0, None, 3600.0),
    ],
)
def test_the_timeout_nearest_to_the_call_counts(
    requested_s: float | None, tool_s: float | None, expected_s: float
) -> None:
    assert execution_timeout(requested_s, tool_s, granted()) == expected_s


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf, 1e99])
def test_a_timeout_that_is_no_number_of_seconds_is_malformed(seconds: float) -> None:
    for requested_s, tool_s, field in ((seconds, 1.0, "timeout_s"), (None, seconds, "parameters.timeout")):
        with pytest.raises(InvalidRequest) as caught:
            execution_timeout(requested_s, tool_s, granted())
        assert [violation.field for violation in caught.value.violations] == [field]


def test_a_longer_timeout_than_the_sandboxs_maximum_is_denied() -> None:
    with pytest.raises(PolicyDenied) as caught:
        execution_timeout(3600.5, None, granted())

    assert (caught.value.rule, caught.value.field, caught.value.limit) == ("resources", "timeout_s", "3600.0")


# -- limits of the operator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"memory_default_bytes": 0},
        {"memory_max_bytes": 256 * MIB},
        {"cpu_default": 0.0},
        {"cpu_max": math.inf},
        {"cpu_max": math.nan},
        {"pids_max": 16},
        {"timeout_default_s": 0.0},
        {"timeout_max_s": 10.0},
        {"ttl_default_s": -1.0},
        {"sandboxes_max": 0},
        {"executions_per_sandbox_max": 0},
        {"image_default": ""},
    ],
)
def test_limits_that_contradict_each_other_are_refused_by_name(change: dict[str, Any]) -> None:
    name = next(iter(change)).split("_", maxsplit=1)[0]

    with pytest.raises(ValueError, match=name):
        replace(LIMITS, **change)
