"""What policy grants, lowers, refuses and calls malformed."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.core.policy import (
    Admission,
    Policy,
    PolicyLimits,
    check_execution_id,
    check_id,
    check_labels,
    execution_timeout,
)
from enclaved.core.tmpfs import HEAP_RESERVE_BYTES
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import Adjustment, PortMapping, SandboxRequest, SandboxSpec, Volume
from enclaved.tools.registry import ToolRegistry

MIB = 1024 * 1024
GIB = 1024 * MIB

LIMITS = PolicyLimits()


def policy(limits: PolicyLimits = LIMITS) -> Policy:
    return Policy(limits, ToolRegistry.built_in(), machine="x86_64")


def admit(limits: PolicyLimits = LIMITS, /, **asked: Any) -> Admission:
    return policy(limits).admit(SandboxRequest(**asked))


def granted(**asked: Any) -> SandboxSpec:
    return admit(**asked).spec


def denied(**asked: Any) -> PolicyDenied:
    with pytest.raises(PolicyDenied) as caught:
        admit(**asked)
    return caught.value


def malformed(**asked: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        admit(**asked)
    return {violation.field: violation.description for violation in caught.value.violations}


# -- defaults ----------------------------------------------------------------------------------------------------


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


# -- numbers -----------------------------------------------------------------------------------------------------


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


# -- file systems in memory --------------------------------------------------------------------------------------


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


# -- privileges --------------------------------------------------------------------------------------------------


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


# -- image, directory, environment -------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["", " ", "a b", "a\n", "a\0", "x" * 513, "imagé", "\ud800"])
def test_what_is_no_name_of_an_image_is_malformed(image: str) -> None:
    found = malformed(image=image)

    assert list(found) == ["spec.image"]
    assert len(found["spec.image"].encode()) < 200


@pytest.mark.parametrize(
    "path",
    [
        "",
        "sandbox",
        "/",
        "//sandbox",
        "/sandbox/",
        "/a/../b",
        "/a/./b",
        "/..",
        "/a b",
        "/a:b",
        "/a,b",
        "/a\nb",
        "/a\0",
        "/\ud800",
        "/" + "é" * 128,
        "/proc",
        "/proc/self/cwd",
        "/sys",
        "/dev/shm",
        "/etc",
        "/usr/local",
        "/bin",
        "/lib64",
        "/run/enclave",
        "/tmp",
        "/tmp/work",
        "/var/lib",
        "/opt",
    ],
)
def test_a_working_directory_that_is_odd_or_the_systems_is_malformed(path: str) -> None:
    found = malformed(working_dir=path)

    assert list(found) == ["spec.working_dir"]
    assert "/sandbox" in found["spec.working_dir"]


@pytest.mark.parametrize("path", ["/sandbox", "/workspace", "/root", "/home/me", "/opt/app", "/library", "/工作"])
def test_a_working_directory_of_its_own_is_granted(path: str) -> None:
    assert granted(working_dir=path).working_dir == path


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\0", "A\n", "É", "A-B", "\ud800", "x" * 99 + "="])
def test_what_is_no_name_of_a_variable_is_malformed(name: str) -> None:
    found = malformed(env_vars={name: "1"})

    assert list(found) == ["spec.env_vars"]
    assert "must match" in found["spec.env_vars"]


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV", "ENCLAVED_X"],
)
def test_loader_and_reserved_variables_are_malformed(name: str) -> None:
    assert name in malformed(env_vars={name: "1"})["spec.env_vars"]


@pytest.mark.parametrize("variables", [{"A": "a\0b"}, {"A": "\ud800"}, {"A": "x" * 1_000_000}])
def test_values_that_no_environment_can_hold_are_malformed(variables: dict[str, str]) -> None:
    assert list(malformed(env_vars=variables)) == ["spec.env_vars"]


def test_an_environment_has_a_bound_in_entries_and_bytes() -> None:
    assert "257 entries" in malformed(env_vars={f"A{i}": "" for i in range(257)})["spec.env_vars"]
    assert len(granted(env_vars={f"A{i}": "" for i in range(256)}).env_vars) == 256
    assert granted(env_vars={"A": "x" * (64 * 1024 - 1)})
    assert malformed(env_vars={"A": "x" * (64 * 1024)})


def test_every_malformed_field_is_named_at_once() -> None:
    found = malformed(memory_limit_bytes=0, cpu_limit=math.nan, image="", working_dir="x", tools={"nope": {}})

    assert set(found) == {
        "spec.memory_limit_bytes",
        "spec.cpu_limit",
        "spec.image",
        "spec.working_dir",
        "spec.tools",
    }


# -- tools -------------------------------------------------------------------------------------------------------


def test_tools_are_enabled_by_their_canonical_names_with_their_options() -> None:
    assert granted(tools={}).tools == {}
    assert granted(tools={"bash": {"timeout": 5}, "python_executor": {}}).tools == {
        "shell_executor": {"timeout": 5},
        "python_executor": {},
    }
    assert granted(tools={"bash": {}, "shell_executor": {}}).tools == {"shell_executor": {}}


@pytest.mark.parametrize("name", ["nope", "notebook_executor", "command", "", "\ud800", "x" * 1000])
def test_an_unknown_or_internal_tool_is_malformed_and_the_others_are_listed(name: str) -> None:
    text = malformed(tools={name: {}})["spec.tools"]

    assert text.endswith("available: file_operation, python_executor, shell_executor")
    assert len(text.encode()) < 200


def test_options_are_checked_when_the_sandbox_is_made() -> None:
    assert "known ones: " in malformed(tools={"bash": {"nope": 1}})["spec.tools.shell_executor.nope"]
    assert list(malformed(tools={"bash": {"timeout": -1}})) == ["spec.tools.shell_executor.timeout"]
    assert list(malformed(tools={"bash": {"timeout": 1}, "shell_executor": {}})) == ["spec.tools.shell_executor"]
    error = denied(tools={"bash": {"timeout": 3601}})
    assert (error.rule, error.field) == ("resources", "spec.tools.shell_executor.timeout")


# -- timeouts of executions --------------------------------------------------------------------------------------


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


# -- ids and labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "0", "my-box_1", "a" * 63])
def test_plain_ids_pass(value: str) -> None:
    check_id(value)
    check_execution_id(value.upper())


@pytest.mark.parametrize(
    "value",
    ["", "-a", "_a", "A/b", "../a", "a\r\n", "a\n", "a\0", "a b", "٣", "é", "\ud800", "a" * 65, "a" * 1_000_000],
)
def test_ids_with_anything_else_are_malformed_before_they_are_used(value: str) -> None:
    for check in (check_id, check_execution_id):
        with pytest.raises(InvalidRequest) as caught:
            check(value, "spec.id")
        assert [violation.field for violation in caught.value.violations] == ["spec.id"]
        assert len(str(caught.value).encode()) < 300


def test_ids_of_sandboxes_are_lower_case_and_a_little_shorter() -> None:
    for value in ("A", "a" * 64):
        check_execution_id(value)
        with pytest.raises(InvalidRequest):
            check_id(value)


def test_plain_labels_pass() -> None:
    check_labels({})
    check_labels({f"team.example/key-{i}_x": "v" * 256 for i in range(64)})


@pytest.mark.parametrize(
    "labels",
    [
        {"enclaved.id": "x"},
        {"Enclaved.hmac": "x"},
        {"": "x"},
        {"a b": "x"},
        {"a\n": "x"},
        {"é": "x"},
        {"k" * 64: "x"},
        {"k": "v" * 257},
        {"k": "\0"},
        {"k": "\ud800"},
        {str(i): "" for i in range(65)},
    ],
)
def test_labels_in_our_namespace_or_out_of_bounds_are_malformed(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_labels(labels)

    assert [violation.field for violation in caught.value.violations] == ["labels"]
    assert len(str(caught.value).encode()) < 300


# -- limits of the operator --------------------------------------------------------------------------------------


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


# -- properties --------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 30, 64 * MIB, 80 * MIB, 128 * MIB, 512 * MIB, 4 * GIB, 4 * GIB + 1, 2**63]),
)
TEXTS = st.text(st.characters(), max_size=20)
MAPPINGS = st.dictionaries(TEXTS | st.sampled_from(["A", "HOME", "LD_PRELOAD"]), TEXTS, max_size=3)
OPTIONS = st.dictionaries(st.just("timeout") | TEXTS, st.none() | st.integers() | st.floats() | TEXTS, max_size=2)

REQUESTS = st.builds(
    SandboxRequest,
    image=st.none() | TEXTS,
    memory_limit_bytes=NUMBERS,
    cpu_limit=NUMBERS,
    pids_limit=NUMBERS,
    working_dir_size_bytes=NUMBERS,
    tmp_size_bytes=NUMBERS,
    working_dir=st.none() | TEXTS | st.sampled_from(["/sandbox", "/", "/etc"]),
    env_vars=MAPPINGS,
    tools=st.none() | st.dictionaries(TEXTS | st.sampled_from(["bash", "python_executor"]), OPTIONS, max_size=3),
    timeout_s=NUMBERS,
    ttl_s=NUMBERS,
    remove_on_exit=st.none() | st.booleans(),
    network_enabled=st.none() | st.booleans(),
    network=st.none() | TEXTS | st.sampled_from(["none", "bridge", "host"]),
    volumes=st.just(()) | st.builds(lambda path: (Volume(path, path),), TEXTS),
    ports=st.just(()) | st.builds(lambda port: (PortMapping(port),), TEXTS),
    extra_hosts=st.just({}) | MAPPINGS,
    platform=st.none() | TEXTS | st.just("linux/amd64"),
    command=st.just(()) | st.builds(lambda word: (word,), TEXTS),
    privileged=st.none() | st.booleans(),
    documented_defaults=st.frozensets(st.sampled_from([each.name for each in fields(SandboxRequest)])),
)

# Mostly well-formed, so that the far side of the checks is seen as well.
PLAIN_REQUESTS = st.builds(
    SandboxRequest,
    memory_limit_bytes=st.none() | st.integers(64 * MIB, 6 * GIB),
    cpu_limit=st.none() | st.floats(0.05, 3),
    pids_limit=st.none() | st.integers(32, 2048),
    working_dir_size_bytes=st.none() | st.integers(64 * 1024, 512 * MIB),
    tmp_size_bytes=st.none() | st.integers(64 * 1024, 256 * MIB),
    timeout_s=st.none() | st.floats(0, 7200),
    ttl_s=st.none() | st.floats(1, 1_000_000),
    tools=st.none() | st.just({}) | st.just({"bash": {"timeout": 3}}),
    network_enabled=st.none() | st.booleans(),
    documented_defaults=st.frozensets(
        st.sampled_from(["memory_limit_bytes", "cpu_limit", "network_enabled", "timeout_s", "ttl_s", "pids_limit"])
    ),
)


def outcome(request: SandboxRequest) -> Admission | str:
    """Returns what a request is granted, or the error's type and text; any other exception fails the test."""
    try:
        return policy().admit(request)
    except (InvalidRequest, PolicyDenied) as error:
        text = str(error)
        text.encode()
        assert len(text) < 8000
        return f"{type(error).__name__}: {text}"


def check_limits(request: SandboxRequest, admission: Admission) -> None:
    spec = admission.spec
    assert 64 * MIB <= spec.memory_limit_bytes <= LIMITS.memory_max_bytes
    assert 0.05 <= spec.cpu_limit <= LIMITS.cpu_max
    assert 32 <= spec.pids_limit <= LIMITS.pids_max
    assert 0 < spec.timeout_s <= spec.timeout_max_s == LIMITS.timeout_max_s
    assert 1 <= spec.ttl_s <= LIMITS.ttl_max_s
    sizes = (spec.working_dir_size_bytes, spec.tmp_size_bytes, spec.shm_size_bytes)
    assert min(sizes) >= 4096
    assert sum(sizes) + HEAP_RESERVE_BYTES <= spec.memory_limit_bytes
    assert spec.working_dir.startswith("/")
    assert not request.privileged
    assert not request.volumes
    assert not request.ports
    for adjustment in admission.adjustments:
        assert adjustment.field in request.documented_defaults
    for name in ("memory_limit_bytes", "cpu_limit", "pids_limit", "ttl_s", "working_dir", "image"):
        asked = getattr(request, name)
        lowered = name in {adjustment.field for adjustment in admission.adjustments}
        assert asked is None or lowered or getattr(spec, name) == asked


@settings(deadline=None)
@given(REQUESTS)
def test_any_request_yields_a_spec_within_the_limits_or_a_typed_error(request: SandboxRequest) -> None:
    found = outcome(request)

    assert found == outcome(request)
    if isinstance(found, Admission):
        check_limits(request, found)


@settings(deadline=None)
@given(PLAIN_REQUESTS)
def test_well_formed_requests_are_granted_in_full_or_refused(request: SandboxRequest) -> None:
    found = outcome(request)

    assert found == outcome(request)
    if isinstance(found, Admission):
        check_limits(request, found)


@settings(deadline=None)
@given(st.none() | st.floats(), st.none() | st.floats())
def test_any_timeout_is_within_the_sandboxs_maximum_or_a_typed_error(
    requested_s: float | None, tool_s: float | None
) -> None:
    spec = granted()

    with suppress(InvalidRequest, PolicyDenied):
        assert 0 < execution_timeout(requested_s, tool_s, spec) <= spec.timeout_max_s


@settings(deadline=None)
@given(st.integers(64 * MIB, 4 * GIB))
def test_default_file_systems_fit_into_any_memory_limit(memory_bytes: int) -> None:
    check_limits(SandboxRequest(), admit(memory_limit_bytes=memory_bytes))
