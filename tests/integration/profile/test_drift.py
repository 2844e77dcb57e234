"""What somebody else changes of a container while its sandbox runs: it is ended, or its limits are put back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiodocker
import pytest
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory

RUNNING, ERROR = sandbox_pb.Sandbox.STATE_RUNNING, sandbox_pb.Sandbox.STATE_ERROR


@pytest.fixture
async def running(default_image: str) -> AsyncIterator[Running]:
    """A daemon that looks often, with two sandboxes."""
    async with (
        short_directory() as folder,
        daemon(settings_in(folder, daemon__reap_every_s="0.2"), runtime=None) as made,
    ):
        await made.create("box")
        await made.create("other")
        yield made


async def look(running: Running, sandbox_id: str) -> Any:
    """A sandbox as its daemon shows it."""
    answer = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id=sandbox_id))
    return answer.sandbox


async def looks(running: Running) -> float:
    """How often the daemon has looked through everything."""
    _, text = await running.get("/metrics")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("enclaved_reaper_runs_total"))


async def update(sandbox_id: str, **limits: Any) -> None:
    """Changes a container as ``docker update`` does."""
    async with aiodocker.Docker() as docker:
        for container in await docker.containers.list(filters={"label": [f"enclaved.id={sandbox_id}"]}):
            await docker._query_json(f"containers/{container.id}/update", "POST", data=limits)


async def state_other_than_running(running: Running, sandbox_id: str) -> Any:
    """Waits until a sandbox does not run any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await look(running, sandbox_id)
            if found.state != RUNNING:
                return found
            await asyncio.sleep(0.05)


async def test_a_container_that_somebody_changed_is_ended_and_the_field_is_named(running):
    await update("box", RestartPolicy={"Name": "always"})
    found = await state_other_than_running(running, "box")
    assert found.state == ERROR
    assert "HostConfig.RestartPolicy" in found.state_reason
    _, text = await running.get("/metrics")
    assert "enclaved_sandbox_drifts_total 1.0" in text
    assert (await look(running, "other")).state == RUNNING


async def test_containers_that_nobody_changed_stay_also_under_the_next_daemon(default_image):
    async with short_directory() as folder:
        settings = settings_in(folder, daemon__reap_every_s="0.2", daemon__keep_sandboxes_on_stop="true")
        async with daemon(settings, runtime=None) as first:
            await first.create("box")
            await enough_looks(first)
        async with daemon(settings_in(folder, daemon__reap_every_s="0.2"), runtime=None) as second:
            await enough_looks(second)
            assert (await look(second, "box")).state == RUNNING
            await update("box", RestartPolicy={"Name": "always"})
            assert "RestartPolicy" in (await state_other_than_running(second, "box")).state_reason


async def enough_looks(running: Running) -> None:
    """Waits for two more looks."""
    before = await looks(running)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await looks(running) >= before + 2:
                return
            await asyncio.sleep(0.05)


async def test_what_was_granted_is_no_drift(default_image):
    async with (
        short_directory() as folder,
        daemon(settings_in(folder, daemon__reap_every_s="0.2"), runtime=None, embedded=True) as made,
    ):
        spec = sandbox_pb.SandboxSpec(network_enabled=True, extra_hosts={"db.example": "192.0.2.1"})
        await made.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id="box", spec=spec))
        assert await granted_network("box")
        await enough_looks(made)
        assert (await look(made, "box")).state == RUNNING


async def granted_network(sandbox_id: str) -> bool:
    """Whether the container has a network."""
    async with aiodocker.Docker() as docker:
        found = await docker.containers.list(filters={"label": [f"enclaved.id={sandbox_id}"]})
        shown = [await container.show() for container in found]
        return any(one["HostConfig"]["NetworkMode"] != "none" for one in shown)
