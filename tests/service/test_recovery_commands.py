"""A daemon is killed before it began the command of a sandbox: the next one begins it, once, or says there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core import leftovers
from tests.service.daemons import Running
from tests.service.recovery import World, info, new_world, recovered, until

GRANTS = """
[roles.default]
images = ["*"]
command = true
"""


class Governed(World):
    """One whose daemons start commands with sandboxes."""

    @asynccontextmanager
    async def daemon(self, **flags: str) -> AsyncIterator[Running]:
        async with super().daemon(policy__file=str(self.folder / "policy.toml"), **flags) as running:
            yield running


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(Governed) as world:
        (world.folder / "policy.toml").write_text(GRANTS)
        yield world


async def create(running: Running, *command: str) -> sandbox_pb.Sandbox:
    spec = sandbox_pb.SandboxSpec(command=command)
    request = sandbox_pb.CreateSandboxRequest(sandbox_id="box", spec=spec)
    return (await running.sandbox_stub.CreateSandbox(request)).sandbox


async def as_killed_before_it_began(world: World, **changes: Any) -> None:
    """Leaves what is written down as a daemon does that is killed between the state RUNNING and the command."""
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, command_due=True, **changes))


async def the_end(running: Running, execution_id: str) -> pb.Finished:
    request = pb.WaitExecutionRequest(execution_id=execution_id, wait_s=60)
    finished: pb.Finished = (await running.execution_stub.WaitExecution(request)).execution.finished
    return finished


async def is_due(world: World) -> bool:
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        return row.command_due


async def test_a_command_that_was_to_begin_is_begun_by_the_next_daemon(world: World) -> None:
    async with world.daemon() as first:
        box = await create(first, "sh", "-c", "exit 7")
        assert (await the_end(first, box.command_execution_id)).exit_code == 7
    assert not await is_due(world)
    await as_killed_before_it_began(world, command_execution_id="never-begun")
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        assert (await info(second)).command_execution_id == "never-begun"

        async def is_known() -> bool:
            listed = await second.execution_stub.ListExecutions(pb.ListExecutionsRequest(sandbox_id="box"))
            return "never-begun" in [each.execution_id for each in listed.executions]

        await until(is_known)
        assert (await the_end(second, "never-begun")).exit_code == 7
    assert not await is_due(world)


async def test_a_command_that_had_begun_is_not_begun_twice(world: World) -> None:
    async with world.daemon() as first:
        box = await create(first, "sleep", "600")
    await as_killed_before_it_began(world)
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        listed = await second.execution_stub.ListExecutions(pb.ListExecutionsRequest(sandbox_id="box"))
        assert [each.execution_id for each in listed.executions] == [box.command_execution_id]


async def test_a_command_that_cannot_begin_any_more_is_named_by_nobody(world: World) -> None:
    async with world.daemon() as first:
        await create(first, "sh", "-c", "exit 7")
    async with world.state() as state:
        (row,) = state.sandboxes.load()
    without = replace(row.spec, command_options=None)  # as for a role that runs no commands
    await as_killed_before_it_began(world, command_execution_id="never-begun", spec=without)
    async with world.daemon() as second:

        async def is_cleared() -> bool:
            return not (await info(second)).command_execution_id

        await until(is_cleared)
