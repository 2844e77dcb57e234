"""No input gets more than its role grants, the same input gets the same, and extending loses no refusal silently."""

from __future__ import annotations

import copy
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.config import ConfigError, read_policy, role_lines
from enclaved.core.policy import Outcome, Policy, PolicyLimits, Role, Rules, built_in_rules
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import Identity, Network, PortMapping, SandboxRequest, SandboxSpec, Volume
from enclaved.tools.registry import ToolRegistry

MIB = 1024 * 1024
GIB = 1024 * MIB
DIGEST = "sha256:" + "a" * 64
TOOLS = ToolRegistry.built_in()
BUILT_IN = built_in_rules(PolicyLimits(), working_dir="/home/me", protected=("/srv/state", "/home/me/e.sock"))
NEVER = ("/etc", "/proc", "/sys", "/dev", "/run", "/var/run", "/srv/state", "/home/me/e.sock")

IMAGES = ("python:3.11-slim", "python:3.12", f"python:3.11@{DIGEST}", "a.example/b:1", "localhost:5000/x", "10.0.0.1/x")
PATHS = (
    "/srv/a",
    "/srv/a/b",
    "/srv",
    "/",
    "/etc/x",
    "/home/me/x",
    "/home/me",
    "/srv/state/s",
    "sets/x",
    "sets",
    "/srv/ab",
)

TABLES: Mapping[str, st.SearchStrategy[Any]] = {
    "memory_max_bytes": st.sampled_from([64 * MIB, 256 * MIB, 8 * GIB]),
    "cpu_max": st.sampled_from([0.5, 4.0]),
    "pids_max": st.sampled_from([64, 4096]),
    "timeout_max_s": st.sampled_from([10.0, 7200.0]),
    "ttl_max_s": st.sampled_from([60.0, 999999.0]),
    "idle_timeout_max_s": st.sampled_from([0.0, 30.0]),
    "working_dir_size_max_bytes": st.sampled_from([0, 4 * MIB]),
    "tmp_size_max_bytes": st.sampled_from([0, 4 * MIB]),
    "output_max_bytes": st.sampled_from([0, 1000]),
    "images": st.sampled_from(
        [["**"], ["python:*"], ["python:3.11-slim", "a.example/**"], ["python:*", "localhost:*/*"], [f"**@{DIGEST}"]]
    ),
    "images_by_digest": st.sampled_from([False, False, False, True]),
    "may_pull": st.booleans(),
    "runtime_classes": st.sampled_from([["runc"], ["runsc", "runc"], ["*"], ["runsc"]]),
    "networks": st.sampled_from([["none"], ["none", "bridge"]]),
    "volumes": st.lists(
        st.sampled_from(
            [{"path": "/srv/a", "mode": "rw"}, {"path": "/srv/a/b"}, {"path": "/srv/sets", "name": "sets"}]
        ),
        unique_by=lambda volume: volume["path"],
    ),
    "ports": st.sampled_from([[], ["any"], ["8000-8009", 9000]]),
    "extra_hosts": st.booleans(),
    "command": st.booleans(),
    "env_names": st.sampled_from([[], ["*"], ["A*"]]),
    "tools": st.sampled_from([["*"], ["python_executor"], ["shell_*", "file_operation"]]),
}
SAID = st.fixed_dictionaries({}, optional=dict(TABLES))

REQUESTS = st.builds(
    SandboxRequest,
    image=st.sampled_from(IMAGES),
    memory_limit_bytes=st.none() | st.integers(64 * MIB, 9 * GIB),
    cpu_limit=st.none() | st.floats(0.05, 5),
    pids_limit=st.none() | st.integers(32, 5000),
    working_dir_size_bytes=st.none() | st.integers(65536, 8 * MIB),
    tmp_size_bytes=st.none() | st.integers(65536, 8 * MIB),
    env_vars=st.dictionaries(st.sampled_from(["A", "AB", "B"]), st.text(max_size=3), max_size=2),
    tools=st.none() | st.dictionaries(st.sampled_from(["bash", "python_executor"]), st.just({}), max_size=2),
    timeout_s=st.none() | st.floats(0, 9999),
    ttl_s=st.none() | st.floats(1, 10**6),
    idle_timeout_s=st.none() | st.just(0.0) | st.floats(1, 60),
    network_enabled=st.none() | st.booleans(),
    network=st.none() | st.sampled_from(["none", "bridge", "bridge", "host", "mine"]),
    volumes=st.lists(
        st.builds(
            Volume, st.sampled_from(PATHS), st.sampled_from(["/d", "/e", "/sandbox/x"]), st.sampled_from(["ro", "rw"])
        ),
        max_size=2,
    ).map(tuple),
    ports=st.lists(
        st.builds(
            PortMapping,
            st.sampled_from(["80", "81/udp"]),
            st.sampled_from(["127.0.0.1", "0.0.0.0"]),
            st.sampled_from([0, 80, 8005, 9000]),
        ),
        max_size=2,
    ).map(tuple),
    extra_hosts=st.dictionaries(st.just("db"), st.just("10.0.0.1"), max_size=1),
    platform=st.none() | st.sampled_from(["linux/amd64", "linux/amd64", "linux/arm64"]),
    command=st.sampled_from([(), ("sleep", "1")]),
    privileged=st.sampled_from([None, None, None, False, True]),
    runtime_class=st.none() | st.sampled_from(["runc", "runsc", "kata"]),
    documented_defaults=st.frozensets(st.sampled_from(["network_enabled", "network", "memory_limit_bytes"])),
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def rules_of(parent: Mapping[str, Any], child: Mapping[str, Any]) -> Rules | None:
    """The rules of a file with two roles, of which one extends the other; ``None`` for a file with a mistake."""
    lines = ["[roles.parent]", *(f"{key} = {toml(value)}" for key, value in parent.items())]
    lines += ["[roles.child]", 'extends = "parent"', *(f"{key} = {toml(value)}" for key, value in child.items())]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("\n".join(lines))
        file.flush()
        known = Rules(BUILT_IN.limits, BUILT_IN.roles, BUILT_IN.protected, ("runsc", "kata"))
        try:
            return read_policy(Path(file.name), known, tools=TOOLS)
        except ConfigError:
            return None


def is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def check_granted(spec: SandboxSpec, request: SandboxRequest, role: Role) -> None:
    """Compares what was granted with what the role says, by other means than the policy's own."""
    limits = role.limits
    assert spec.memory_limit_bytes <= limits.memory_max_bytes
    assert spec.cpu_limit <= limits.cpu_max
    assert spec.pids_limit <= limits.pids_max
    assert 0 < spec.timeout_s <= spec.timeout_max_s <= limits.timeout_max_s
    assert 0 < spec.ttl_s <= limits.ttl_max_s
    assert not limits.idle_timeout_max_s or 0 < spec.idle_timeout_s <= limits.idle_timeout_max_s
    assert spec.working_dir_size_bytes <= (limits.working_dir_size_max_bytes or 2**60)
    assert spec.tmp_size_bytes <= (limits.tmp_size_max_bytes or 2**60)
    assert spec.output_limit_max_bytes == limits.output_max_bytes
    assert spec.network.value in role.networks
    assert spec.may_pull is role.may_pull
    assert not spec.command or role.command
    assert not spec.extra_hosts or role.extra_hosts
    assert not request.privileged
    for name in spec.env_vars:
        assert any(pattern == "*" or name.startswith(pattern.rstrip("*")) for pattern in role.env_names)
    enabled = TOOLS.names() if spec.tools is None else tuple(spec.tools)
    for name in enabled:
        assert any(pattern in ("*", name) or name.startswith(pattern.rstrip("*")) for pattern in role.tools)
    for mount in spec.mounts:
        assert not any(is_within(mount.host_path, each) or is_within(each, mount.host_path) for each in NEVER)
        fitting = [rule for rule in role.volumes if is_within(mount.host_path, rule.path)]
        assert fitting
        assert mount.read_only or any(rule.writable for rule in fitting)
    for port in spec.ports:
        assert spec.network is Network.BRIDGE
        assert port.host_address == "127.0.0.1"
        assert any(each.first <= port.host_port <= each.last for each in role.ports)
    if role.images_by_digest:
        assert spec.image_digest
    if "localhost" in spec.image or "10.0.0.1" in spec.image:
        assert any(entry.startswith("localhost") for entry in role.images)
    assert (spec.runtime_class or "runc") in role.runtime_classes or "*" in role.runtime_classes
    for field in ("image", "memory_limit_bytes", "pids_limit", "command"):
        asked = getattr(request, field)
        assert asked in (None, ()) or field in request.documented_defaults or getattr(spec, field) == asked


@settings(deadline=None)
@given(SAID, SAID, REQUESTS)
def test_nobody_gets_more_than_the_role_grants(
    parent: dict[str, Any], child: dict[str, Any], request: SandboxRequest
) -> None:
    rules = rules_of(parent, child)
    if rules is None:
        return
    policy = Policy(rules.limits, TOOLS, machine="x86_64", rules=rules)
    for name in ("parent", "child"):
        before = copy.deepcopy(request)
        try:
            admission = policy.admit(request, Identity("somebody", name))
        except (InvalidRequest, PolicyDenied) as error:
            found: object = str(error)
        else:
            check_granted(admission.spec, request, rules.roles[name])
            assert all(each.field in request.documented_defaults for each in admission.adjustments)
            found = admission
        assert request == before
        try:
            again: object = policy.admit(request, Identity("somebody", name))
        except (InvalidRequest, PolicyDenied) as error:
            again = str(error)
        assert again == found


@settings(deadline=None)
@given(SAID, SAID, REQUESTS)
def test_a_sandbox_is_covered_by_the_role_that_made_it_and_by_others_only_if_they_grant_all_of_it(
    parent: dict[str, Any], child: dict[str, Any], request: SandboxRequest
) -> None:
    rules = rules_of(parent, child)
    if rules is None:
        return
    policy = Policy(rules.limits, TOOLS, machine="x86_64", rules=rules)
    try:
        spec = policy.admit(request, Identity("somebody", "parent")).spec
    except (InvalidRequest, PolicyDenied):
        return
    policy.covers(spec, Identity("somebody", "parent"))
    try:
        policy.covers(spec, Identity("another", "child"))
    except (InvalidRequest, PolicyDenied):
        return
    check_granted(spec, request, rules.roles["child"])


DEPENDS: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "images_by_digest", "image_default"),
    "ports": ("ports", "networks"),
}
"""Rules that others decide as well."""


@settings(deadline=None)
@given(SAID, SAID, REQUESTS)
def test_a_role_that_extends_another_loses_no_refusal_that_it_does_not_speak_of(
    parent: dict[str, Any], child: dict[str, Any], request: SandboxRequest
) -> None:
    rules = rules_of(parent, child)
    if rules is None:
        return
    policy = Policy(rules.limits, TOOLS, machine="x86_64", rules=rules)
    try:
        before, _ = policy.explain(request, rules.roles["parent"])
        after, _ = policy.explain(request, rules.roles["child"])
    except InvalidRequest:
        return
    still = {(each.rule, each.field) for each in after if each.outcome is Outcome.REFUSED}
    for each in before:
        is_spoken_of = any(key in child for key in DEPENDS.get(each.rule, (each.rule,)))
        if each.outcome is Outcome.REFUSED and not is_spoken_of:
            assert (each.rule, each.field) in still


@settings(deadline=None)
@given(SAID, SAID, REQUESTS)
def test_what_is_explained_is_what_is_admitted(
    parent: dict[str, Any], child: dict[str, Any], request: SandboxRequest
) -> None:
    rules = rules_of(parent, child)
    if rules is None:
        return
    policy = Policy(rules.limits, TOOLS, machine="x86_64", rules=rules)
    try:
        rulings, spec = policy.explain(request, rules.roles["child"])
    except InvalidRequest:
        return
    refused = [each for each in rulings if each.outcome is Outcome.REFUSED]
    try:
        found = policy.admit(request, Identity("somebody", "child")).spec, ""
    except PolicyDenied as error:
        found = spec, str(error)
    assert found == (spec, refused[0].why if refused else "")
    assert all(each.origin for each in rulings)


@settings(deadline=None)
@given(SAID, SAID)
def test_what_is_shown_of_a_role_is_a_policy_file_that_says_the_same(
    parent: dict[str, Any], child: dict[str, Any]
) -> None:
    rules = rules_of(parent, child)
    if rules is None:
        return
    shown = [line for name in ("parent", "child") for line in role_lines(rules.roles[name])]
    tables = dict.fromkeys(line.table for line in shown)
    text = "\n".join(f"[{table}]\n" + "\n".join(each.text for each in shown if each.table == table) for table in tables)
    assert tomllib.loads(text)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        known = Rules(BUILT_IN.limits, BUILT_IN.roles, BUILT_IN.protected, ("runsc", "kata"))
        again = read_policy(Path(file.name), known, tools=TOOLS)
    for name in ("parent", "child"):
        assert [line.text for line in role_lines(again.roles[name])] == [
            line.text for line in role_lines(rules.roles[name])
        ]
