"""An engine is used only if it enforces what it accepts."""

from __future__ import annotations

import pytest

from enclaved.errors import EngineRefused
from enclaved.runtime.docker.facts import EngineFacts, facts_of

GOOD = {
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "NCPU": 8,
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"],
}


def test_the_facts_are_read_from_what_the_engine_says():
    assert facts_of(GOOD) == EngineFacts(cgroup_driver="systemd", cgroup_version=2, cpus=8)


def test_an_engine_that_does_not_tell_its_control_groups_has_version_1():
    old = {key: value for key, value in GOOD.items() if key != "CgroupVersion"}
    assert facts_of({**old, "CgroupDriver": "cgroupfs"}).cgroup_version == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"MemoryLimit": False}, "memory limits"),
        ({"PidsLimit": None}, "number of processes"),
        ({"CpuCfsQuota": False}, "CPU limits"),
        ({"SecurityOptions": []}, "seccomp"),
        ({"SecurityOptions": None}, "seccomp"),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "seccomp"),
        ({"CgroupDriver": "none"}, "control group driver"),
    ],
)
def test_an_engine_that_would_ignore_a_limit_is_refused_by_name(change, named):
    with pytest.raises(EngineRefused, match=named):
        facts_of({**GOOD, **change})
