"""What a policy says of shell_executor holds for `execute_command` too, whatever tools a sandbox enables."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.service.daemons import daemon, settings_in, short_directory

Command = Callable[[str], Awaitable[pb.RunResponse]]


@asynccontextmanager
async def commands(policy: str) -> AsyncIterator[Command]:
    """Runs commands in a sandbox of a daemon with this policy."""
    async with short_directory() as folder:
        file = Path(folder) / "policy.toml"
        file.write_text(policy)
        async with daemon(settings_in(folder, policy__file=str(file))) as running:
            await running.create()

            async def command(text: str) -> pb.RunResponse:
                spec = pb.ExecutionSpec(sandbox_id="box", tool="command", parameters_json=json.dumps({"command": text}))
                found: pb.RunResponse = await running.execution_stub.Run(pb.RunRequest(spec=spec))
                return found

            yield command


async def test_a_role_without_a_shell_has_no_commands() -> None:
    async with commands('[roles.default]\ntools = ["file_operation"]\n') as command:
        with pytest.raises(aio.AioRpcError) as caught:
            await command("echo out")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "does not grant shell_executor" in str(caught.value.details())


async def test_forced_options_of_the_shell_hold_for_commands() -> None:
    forced = '[roles.default.tool_options.shell_executor]\nforced = {blocked_commands = ["uname"], timeout = 7}\n'
    async with commands(f"[roles.default]\n{forced}") as command:
        assert (await command("echo out")).stdout == b"out\n"
        with pytest.raises(aio.AioRpcError) as caught:
            await command("echo out; uname")
    assert "Command not allowed: uname (blocked_commands)" in str(caught.value.details())


async def test_a_role_that_grants_a_command_at_start_grants_commands() -> None:
    async with commands('[roles.default]\ntools = ["file_operation"]\ncommand = true\n') as command:
        assert (await command("echo out")).stdout == b"out\n"
