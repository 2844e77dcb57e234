"""The command of a sandbox begins with it, each time, and is an execution like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc import StatusCode, aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core.executions import Executions
from enclaved.errors import GuestUnavailable
from enclaved.runtime.base import ContainerPlan
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import Running, daemon, settings_in, short_directory

SLEEP = ("sleep", "600")


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with daemon(settings_in(folder), embedded=True, working_dir=str(folder)) as running:
        yield running


async def created(running: Running, *command: str, **fields: object) -> sandbox_pb.Sandbox:
    spec = sandbox_pb.SandboxSpec(command=command, **fields)
    request = sandbox_pb.CreateSandboxRequest(sandbox_id="box", spec=spec)
    return (await running.sandbox_stub.CreateSandbox(request)).sandbox


async def the_end(running: Running, execution_id: str) -> execution_pb.Execution:
    request = execution_pb.WaitExecutionRequest(execution_id=execution_id, wait_s=60)
    return (await running.execution_stub.WaitExecution(request)).execution


async def test_a_command_runs_detached_in_the_sandboxes_environment_and_ends_nothing_with_it(running: Running):
    box = await created(running, "sh", "-c", "echo $GREETING; exit 3", env_vars={"GREETING": "hello"})
    assert list(box.spec.command) == ["sh", "-c", "echo $GREETING; exit 3"]
    finished = (await the_end(running, box.command_execution_id)).finished
    assert (finished.verdict, finished.exit_code) == (execution_pb.VERDICT_EXITED, 3)
    stream = running.execution_stub.Attach(execution_pb.AttachRequest(execution_id=box.command_execution_id))
    output = b"".join([answer.event.output.data async for answer in stream])
    assert output == b"hello\n"
    found = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="box"))
    assert found.sandbox.state == sandbox_pb.Sandbox.STATE_RUNNING
    assert found.sandbox.command_execution_id == box.command_execution_id


async def test_it_may_last_as_long_as_policy_lets_an_execution_last(running: Running):
    box = await created(running, *SLEEP, timeout_s=1.0)
    request = execution_pb.GetExecutionRequest(execution_id=box.command_execution_id)
    execution = (await running.execution_stub.GetExecution(request)).execution
    assert (execution.timeout_s, execution.detach) == (3600.0, True)


async def test_a_sandbox_without_a_command_names_no_execution(running: Running):
    assert (await created(running)).command_execution_id == ""


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_the_next_start_begins_it_again_under_another_id(running: Running, remove_on_exit: bool):
    first = await created(running, *SLEEP, remove_on_exit=remove_on_exit)
    await running.sandbox_stub.StopSandbox(sandbox_pb.StopSandboxRequest(sandbox_id="box"))
    again = (await running.sandbox_stub.StartSandbox(sandbox_pb.StartSandboxRequest(sandbox_id="box"))).sandbox
    assert again.command_execution_id not in ("", first.command_execution_id)
    listed = await running.execution_stub.ListExecutions(
        execution_pb.ListExecutionsRequest(state=execution_pb.EXECUTION_STATE_RUNNING)
    )
    assert [each.execution_id for each in listed.executions] == [again.command_execution_id]


async def test_a_command_that_cannot_be_begun_makes_no_sandbox(running: Running):
    with pytest.raises(aio.AioRpcError) as caught:
        await created(running, "x" * 200_000)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    listed = await running.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())
    assert not listed.sandboxes


ONE_A_MINUTE = """
[roles.default]
images = ["*"]
command = true
executions_per_minute = 1
"""


class Counting(SubprocessRuntime):
    """Counts the containers that it makes."""

    made = 0

    async def create(self, plan: ContainerPlan) -> str:
        self.made += 1
        return await super().create(plan)


async def stopped(running: Running, remove_on_exit: bool) -> None:
    """Makes a sandbox with a command, and stops it."""
    await created(running, *SLEEP, remove_on_exit=remove_on_exit)
    await running.sandbox_stub.StopSandbox(sandbox_pb.StopSandboxRequest(sandbox_id="box"))


async def start(running: Running) -> sandbox_pb.Sandbox:
    return (await running.sandbox_stub.StartSandbox(sandbox_pb.StartSandboxRequest(sandbox_id="box"))).sandbox


async def look(running: Running) -> sandbox_pb.Sandbox:
    return (await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="box"))).sandbox


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_a_sandbox_whose_command_a_quota_refuses_is_not_even_started(folder: Path, remove_on_exit: bool):
    policy = folder / "policy.toml"
    policy.write_text(ONE_A_MINUTE)
    runtime = Counting()
    async with daemon(settings_in(folder, policy__file=str(policy)), runtime=runtime) as running:
        await stopped(running, remove_on_exit)
        made = runtime.made
        with pytest.raises(aio.AioRpcError, match="executions_per_minute") as caught:
            await start(running)
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert (await look(running)).state == sandbox_pb.Sandbox.STATE_STOPPED
        assert runtime.made == made


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_a_sandbox_whose_command_cannot_begin_is_stopped_again_and_starts_later(
    running: Running, monkeypatch: pytest.MonkeyPatch, remove_on_exit: bool
):
    await stopped(running, remove_on_exit)

    async def refuse(*_arguments: object) -> None:
        raise GuestUnavailable("it is away")

    with monkeypatch.context() as patched:
        patched.setattr(Executions, "run", refuse)
        with pytest.raises(aio.AioRpcError, match="it is away"):
            await start(running)
    found = await look(running)
    assert (found.state, found.command_execution_id) == (sandbox_pb.Sandbox.STATE_STOPPED, "")
    assert "its command could not begin: it is away" in found.state_reason
    again = await start(running)
    assert again.state == sandbox_pb.Sandbox.STATE_RUNNING
    request = execution_pb.GetExecutionRequest(execution_id=again.command_execution_id)
    assert not (await running.execution_stub.GetExecution(request)).execution.HasField("finished")


async def test_members_of_a_pool_have_none(running: Running):
    pools = pool_service_pb2_grpc.PoolServiceStub(running.channel)
    request = pool_pb.InitializePoolRequest(size=1, spec=sandbox_pb.SandboxSpec(command=SLEEP))
    with pytest.raises(aio.AioRpcError, match="a pool ends everything") as caught:
        await pools.InitializePool(request)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT


async def test_this_runtime_gives_no_network_rather_than_its_own(running: Running):
    with pytest.raises(aio.AioRpcError, match="neither mounts nor networks") as caught:
        await created(running, network_enabled=True)
    assert caught.value.code() is StatusCode.FAILED_PRECONDITION
