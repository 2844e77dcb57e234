"""A plan as core would make it, to be changed field by field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from enclaved.model import SandboxSpec
from enclaved.runtime.base import LABEL_ID, LABEL_OWNER, ContainerPlan, GuestSettings, Image
from enclaved.runtime.docker.facts import EngineFacts

MIB = 1024 * 1024


@pytest.fixture
def facts() -> EngineFacts:
    return EngineFacts(cgroup_driver="cgroupfs", cgroup_version=1, cpus=2)


@pytest.fixture
def plan() -> ContainerPlan:
    return ContainerPlan(
        image=Image(
            id="sha256:" + "a" * 64,
            name="ms-enclave/python:3.11",
            env={"PATH": "/opt/bin:/usr/bin", "LD_PRELOAD": "/evil.so", "FOO": "bar"},
            volumes=(),
        ),
        spec=SandboxSpec(
            image="python:3.11-slim",
            memory_limit_bytes=512 * MIB,
            cpu_limit=0.5,
            pids_limit=256,
            working_dir_size_bytes=128 * MIB,
            tmp_size_bytes=64 * MIB,
            shm_size_bytes=16 * MIB,
            working_dir="/sandbox",
            env_vars={"TOKEN": "s3cret"},
            tools=None,
            timeout_s=30.0,
            timeout_max_s=3600.0,
            ttl_s=3600.0,
            remove_on_exit=True,
        ),
        settings=GuestSettings(
            sandbox_id="box-1",
            uid=1900000007,
            working_dir="/sandbox",
            expires_in_s=3660.0,
            daemon_absence_s=0.0,
            memory_limit_bytes=512 * MIB,
        ),
        guest_file=Path("/srv/enclaved/guest.py"),
        socket_dir=Path("/run/enclaved/sandboxes/box-1"),
        account_dir=Path("/srv/enclaved/accounts/1900000007"),
        group_id=998,
        labels={LABEL_ID: "box-1", LABEL_OWNER: "d" * 32},
    )


@pytest.fixture
def with_spec(plan: ContainerPlan):
    """Makes the plan with some fields of its spec changed."""
    return lambda **fields: replace(plan, spec=replace(plan.spec, **fields))


@pytest.fixture
def with_image(plan: ContainerPlan):
    """Makes the plan with some fields of its image changed."""
    return lambda **fields: replace(plan, image=replace(plan.image, **fields))
