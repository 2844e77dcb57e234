"""What is concluded from what a canary tells. A field that is missing or strange speaks against its protection."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.agent.guest.syscalls import DENIED
from enclaved.core.canary_program import NUMBERS_ONLY_THE_ENGINE_REFUSES
from enclaved.core.judging import Findings, judge, judge_host
from enclaved.model import EMPTY, Protection, ProtectionState, SandboxSpec
from enclaved.model.protections import CEILING, PROTECTION_NAMES, REQUIRED
from enclaved.runtime.inspection import Deviation, GroupLimits, HostFacts

MIB = 1024 * 1024
UID = 1900000001
NONE, THREE = "0" * 16, f"{0xE0:016x}"
SPEC = SandboxSpec(
    image="i",
    memory_limit_bytes=128 * MIB,
    cpu_limit=1.0,
    pids_limit=64,
    working_dir_size_bytes=8 * MIB,
    tmp_size_bytes=4 * MIB,
    shm_size_bytes=2 * MIB,
    working_dir="/sandbox",
    env_vars=EMPTY,
    tools=None,
    timeout_s=30.0,
    timeout_max_s=30.0,
    ttl_s=60.0,
    remove_on_exit=True,
)
HOST = HostFacts(
    engine_version="1",
    cgroup_version=2,
    cgroup_driver="systemd",
    lacking={},
    apparmor=False,
    user_namespaces=False,
    live_restore=False,
    swap_limits=True,
    default_runtime="runc",
    runtimes=("runc",),
)
PROGRAM = {
    "Uid": [str(UID)] * 4,
    "Gid": [str(UID)] * 4,
    "Groups": [],
    "NoNewPrivs": ["1"],
    "Seccomp": ["2"],
    "Seccomp_filters": ["2"],
    **{key: [NONE] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
    "CapBnd": [THREE],
}
GUEST = {
    "Uid": ["0"] * 4,
    "NoNewPrivs": ["1"],
    "Seccomp": ["2"],
    "Seccomp_filters": ["1"],
    **{key: [THREE] for key in ("CapPrm", "CapEff", "CapBnd")},
    **{key: [NONE] for key in ("CapInh", "CapAmb")},
}
TOLD: dict[str, Any] = {
    "program": PROGRAM,
    "guest": GUEST,
    "refusals": {
        **dict.fromkeys(("becoming root", "becoming another user", "ptrace", "vsock", "signal"), "EPERM"),
        "unix": "",
    },
    "engine_refusals": dict.fromkeys(("personality", *NUMBERS_ONLY_THE_ENGINE_REFUSES), "EPERM"),
    "landlock_layers": 15,
    "limits": {"nofile": 1024, "fsize": 8 * MIB, "core": 0},
    "guest_limits": {"nofile": "1024", "fsize": str(8 * MIB), "core": "0"},
    "oom": ["1000", "500"],
    "mounts": [
        {"root": "/", "point": "/", "options": "ro,relatime", "type": "overlay"},
        {"root": "/", "point": "/sandbox", "options": "rw,nosuid", "type": "tmpfs"},
        {"root": "/null", "point": "/proc/keys", "options": "rw", "type": "tmpfs"},
        {"root": "/x/passwd", "point": "/etc/passwd", "options": "ro", "type": "ext4"},
        {"root": "/", "point": "/proc", "options": "rw", "type": "proc"},
    ],
    "rooms": {
        path: {"bytes": size, "files": 1024, "flags": 2 | 4}
        for path, size in (("/sandbox", 8 * MIB), ("/tmp", 4 * MIB), ("/dev/shm", 2 * MIB))
    },
    "interfaces": ["lo"],
    "namespaces": {name: f"{name}:[1]" for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts", "user")},
    "telling": [],
    "devices": ["null", "zero"],
    "uid_map": ["0", "0", "4294967295"],
    "label": "unconfined",
    "swap": ["0"],
}
FOUND = Findings(
    host=HOST,
    spec=SPEC,
    uid=UID,
    told=TOLD,
    deviations=(),
    limits=GroupLimits(128 * MIB, 0, 64, 1.0),
    ceiling=GroupLimits(1 << 33, 0, 65536, None),
    namespaces=frozenset({"net:[7]"}),
)


def states(found: Findings, *waived: str, needs_ceiling: bool = False) -> dict[str, ProtectionState]:
    """The state of each protection."""
    judged = judge(found, waived=waived, needs_ceiling=needs_ceiling)
    assert [one.name for one in judged] == list(PROTECTION_NAMES)
    return {one.name: one.state for one in judged}


def failed(found: Findings) -> list[str]:
    """The names of those that failed."""
    return [name for name, state in states(found).items() if state is ProtectionState.FAILED]


def told(*path: str, value: Any) -> Findings:
    """Findings in which the canary tells something else in one place."""
    document = copy.deepcopy(TOLD)
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return replace(FOUND, told=document)


def test_a_sound_host_has_every_required_protection():
    found = states(FOUND)
    assert {found[name] for name in (*REQUIRED, CEILING, "landlock")} == {ProtectionState.EFFECTIVE}
    assert {found[name] for name in ("swap_limit", "apparmor", "user_namespace")} == {ProtectionState.ABSENT}


MOUNT = {"root": "/", "point": "/mnt", "options": "rw", "type": "tmpfs"}


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (told("program", "Uid", value=["0"] * 4), "uid_separation"),
        (told("program", "Groups", value=["0"]), "uid_separation"),
        (told("refusals", "becoming root", value=""), "uid_separation"),
        (told("program", "CapEff", value=[THREE]), "capabilities"),
        (told("program", "CapBnd", value=["1" * 16]), "capabilities"),
        (told("guest", "CapEff", value=["f" * 16]), "guest"),
        (told("guest", "NoNewPrivs", value=["0"]), "no_new_privileges"),
        (told("guest", "Seccomp", value=["0"]), "engine_filter"),
        (told("guest", "Seccomp_filters", value=["0"]), "engine_filter"),
        (told("engine_refusals", "personality", value=""), "engine_filter"),
        (told("engine_refusals", "move_pages", value=""), "engine_filter"),
        (told("engine_refusals", "migrate_pages", value="EINVAL"), "engine_filter"),
        (told("engine_refusals", value={"personality": "EPERM"}), "engine_filter"),
        (told("program", "Seccomp_filters", value=["1"]), "program_filter"),
        (told("refusals", "ptrace", value=""), "program_filter"),
        (told("refusals", "vsock", value="EAFNOSUPPORT"), "socket_families"),
        (told("refusals", "unix", value="EPERM"), "socket_families"),
        (told("refusals", "signal", value=""), "signals"),
        (told("limits", "nofile", value=-1), "process_limits"),
        (told("guest_limits", "core", value="unlimited"), "process_limits"),
        (told("mounts", value=[]), "read_only_root"),
        (told("mounts", value=[*TOLD["mounts"], MOUNT]), "bounded_files"),
        (told("rooms", "/tmp", "files", value=0), "bounded_files"),
        (told("rooms", "/tmp", "flags", value=4), "bounded_files"),
        (told("mounts", value=[*TOLD["mounts"], {**MOUNT, "options": "ro", "type": "ext4"}]), "host_files"),
        (told("interfaces", value=["lo", "eth0"]), "no_network"),
        (told("namespaces", "net", value="net:[7]"), "namespaces"),
        (told("namespaces", "pid", value="pid:[4026531836]"), "namespaces"),
        (told("telling", value=["/sys/class"]), "kernel_view"),
        (told("devices", value=["kmsg"]), "devices"),
        (told("oom", value=["0", "0"]), "oom_preference"),
        (told("landlock_layers", value=16), "landlock"),
        (replace(FOUND, limits=GroupLimits(None, 0, 64, 1.0)), "memory_limit"),
        (replace(FOUND, limits=GroupLimits(128 * MIB, 0, None, 1.0)), "pids_limit"),
        (replace(FOUND, limits=GroupLimits(128 * MIB, 0, 64, None)), "cpu_limit"),
        (replace(FOUND, deviations=(Deviation("HostConfig.Init", "false", "true"),)), "profile"),
        (replace(FOUND, deviations=(Deviation("HostConfig.Runtime", "nothing", "kata"),)), "runtime"),
        (replace(FOUND, host=replace(HOST, default_runtime="kata")), "runtime"),
        (replace(FOUND, host=replace(HOST, lacking={"pids_limit": "limits"})), "pids_limit"),
        (replace(FOUND, host=replace(HOST, apparmor=True)), "apparmor"),
        (replace(FOUND, host=replace(HOST, user_namespaces=True)), "user_namespace"),
    ],
)
def test_what_is_wrong_is_found_under_its_own_name(found, name):
    assert failed(found) == [name]


def test_swap_that_may_be_used_counts_only_where_there_is_swap():
    limits = GroupLimits(128 * MIB, None, 64, 1.0)
    assert failed(replace(FOUND, limits=limits)) == []
    assert failed(replace(told("swap", value=["1024"]), limits=limits)) == ["swap_limit"]
    assert states(told("swap", value=["1024"]))["swap_limit"] is ProtectionState.EFFECTIVE


def test_where_control_groups_cannot_be_seen_the_limits_are_tried():
    unseen = replace(FOUND, limits=None)
    assert failed(unseen) == ["memory_limit", "pids_limit"]
    tried = replace(unseen, told={**TOLD, "processes": 60, "killed_for_memory": True})
    assert failed(tried) == []
    assert states(tried)["cpu_limit"] is ProtectionState.UNKNOWN


def test_a_waiver_covers_what_it_names_and_nothing_else():
    found = replace(told("oom", value=[]), limits=GroupLimits(None, 0, 64, 1.0))
    seen = states(found, "oom_preference", "devices")
    assert seen["oom_preference"] is ProtectionState.WAIVED
    assert seen["memory_limit"] is ProtectionState.FAILED
    assert seen["devices"] is ProtectionState.EFFECTIVE


def test_a_ceiling_is_required_only_where_that_is_configured():
    found = replace(FOUND, ceiling=GroupLimits(None, None, None, None))
    assert states(found)[CEILING] is ProtectionState.ABSENT
    assert states(found, needs_ceiling=True)[CEILING] is ProtectionState.FAILED


def test_what_the_engine_says_it_lacks_is_known_before_anything_is_made():
    lacking = replace(HOST, lacking={"memory_limit": "memory limits"})
    by_name = {one.name: one for one in judge_host(lacking, ())}
    assert by_name["memory_limit"].state is ProtectionState.FAILED
    assert by_name["profile"] == Protection("profile", ProtectionState.UNKNOWN)
    assert {one.state for one in judge_host(lacking, ("memory_limit",))} == {
        ProtectionState.WAIVED,
        ProtectionState.UNKNOWN,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(TOLD)), value=JSON)
def test_whatever_a_canary_tells_in_one_place_is_judged(field, value):
    assert set(states(replace(FOUND, told={**TOLD, field: value}))) == set(PROTECTION_NAMES)


@given(told=st.dictionaries(st.sampled_from(sorted(TOLD)), JSON, max_size=4))
def test_a_canary_that_leaves_things_out_fails_what_they_were_to_show(told):
    found = replace(FOUND, told=told)
    assert {"guest", "capabilities", "no_new_privileges", "signals", "namespaces"} <= set(failed(found))


def test_the_calls_that_only_the_engine_refuses_are_none_that_we_refuse():
    """Else a sandbox's own filter would be taken for the engine's."""
    assert set(NUMBERS_ONLY_THE_ENGINE_REFUSES).isdisjoint(DENIED)
    ours = {number for numbers in DENIED.values() for number in numbers}
    assert ours.isdisjoint(number for numbers in NUMBERS_ONLY_THE_ENGINE_REFUSES.values() for number in numbers)


def test_an_engine_whose_filter_refuses_next_to_nothing_is_told_which_calls_it_lets_through():
    judged = judge(told("engine_refusals", value={"personality": "EPERM", "mbind": ""}), waived=(), needs_ceiling=False)
    (found,) = [one for one in judged if one.name == "engine_filter"]
    assert "mbind (it was done)" in found.detail
    assert "personality" not in found.detail
    assert "--seccomp-profile" in found.detail
