"""Which runtime of the engine a container is made with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclaved.errors import EngineRefused
from enclaved.runtime.base import ContainerPlan
from enclaved.runtime.docker.facts import EngineFacts, facts_of
from enclaved.runtime.docker.options import create_body

INFO = {
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SecurityOptions": ["name=seccomp,profile=default"],
    "CgroupDriver": "cgroupfs",
    "Runtimes": {"runc": {}, "runsc": {"path": "/usr/bin/runsc"}},
}


def test_without_a_class_the_engine_takes_its_own(plan: ContainerPlan, facts: EngineFacts) -> None:
    assert "Runtime" not in create_body(plan, facts)["HostConfig"]


def test_a_class_names_a_runtime_that_the_engine_has(plan: ContainerPlan) -> None:
    body = create_body(replace(plan, engine_runtime="runsc"), facts_of(INFO))
    assert body["HostConfig"] == {**create_body(plan, facts_of(INFO))["HostConfig"], "Runtime": "runsc"}


def test_one_that_the_engine_lacks_is_refused_before_it_is_asked(plan: ContainerPlan) -> None:
    with pytest.raises(EngineRefused, match=r"no runtime 'kata', .*: it has runc, runsc; add it .* daemon\.json"):
        create_body(replace(plan, engine_runtime="kata"), facts_of(INFO))


def test_accounts_are_mounted_for_a_guest_in_pieces_only_where_the_engine_sees_them(plan: ContainerPlan) -> None:
    pieces = replace(plan, guest_arguments=("piece",), engine_runtime="runsc")
    assert create_body(pieces, facts_of(INFO))["HostConfig"]["Mounts"] == []
    mounts = create_body(replace(pieces, mounts_accounts=True), facts_of(INFO))["HostConfig"]["Mounts"]
    assert [mount["Target"] for mount in mounts] == ["/etc/group", "/etc/hosts", "/etc/passwd"]
    assert all(mount["ReadOnly"] for mount in mounts)
