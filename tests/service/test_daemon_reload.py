"""A new reading of the configuration while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.config import Settings, load
from enclaved.daemon import Reloads
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory
from tests.service.edge import reason


class Reloading:
    """A daemon with a configuration file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"
        self.file.write_text("")
        self.settings = settings_in(folder)
        self._fixed = {
            key: self.settings.value(key) for key in ("listen.unix", "listen.metrics", "state.dir", "listen.unix_group")
        }
        self.reloads = Reloads(self.read)
        self.running: Running

    def read(self) -> Settings:
        return load(self.file, environ={}, flags=self._fixed).settings

    async def reload(self, text: str, outcome: str = "ok") -> None:
        """Writes the file, has it read, and waits until that is counted."""
        before = await self.counted(outcome)
        self.file.write_text(text)
        self.reloads.ask("the test")
        async with asyncio.timeout(PATIENCE_S):
            while await self.counted(outcome) == before:
                pass

    async def counted(self, outcome: str) -> str:
        return await self.sample(f'enclaved_config_reloads_total{{outcome="{outcome}"}}')

    async def sample(self, name: str) -> str:
        _, text = await self.running.get("/metrics")
        (value,) = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return value


@pytest.fixture
async def reloading() -> AsyncIterator[Reloading]:
    level = logging.getLogger().level
    async with short_directory() as folder:
        found = Reloading(folder)
        async with daemon(found.settings, reloads=found.reloads) as found.running:
            yield found
    logging.getLogger().setLevel(level)


async def refused(running: Running, **spec: Any) -> str:
    request = sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(**spec))
    with pytest.raises(aio.AioRpcError) as caught:
        await running.sandbox_stub.CreateSandbox(request)
    assert caught.value.code() is not grpc.StatusCode.INTERNAL
    return reason(caught.value)


async def test_limits_change_for_the_next_request_and_not_for_sandboxes_there_are(reloading: Reloading):
    running = reloading.running
    await running.create("old")
    old = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="old"))
    await reloading.reload("[limits]\nmemory_default_bytes = 134217728\nmemory_max_bytes = 134217728\n")
    await running.create("new")
    new = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="new"))
    assert new.sandbox.spec.memory_limit_bytes == 134217728
    assert await refused(running, memory_limit_bytes=268435456) == "POLICY_DENIED"
    assert await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="old")) == old
    await reloading.reload("[limits]\nsandboxes_max = 2\n")
    assert await refused(running) == "LIMIT_REACHED"


async def test_the_level_of_the_log_changes(reloading: Reloading):
    await reloading.reload("[log]\nlevel = 'error'\n")
    assert logging.getLogger().level == logging.ERROR
    await reloading.reload("[log]\nlevel = 'debug'\n")
    assert logging.getLogger().level == logging.DEBUG


async def test_what_cannot_change_is_named_and_stays(reloading: Reloading, caplog: pytest.LogCaptureFixture):
    await reloading.reload("[sandbox]\nuid_first = 5000\n[engine]\npull = false\n[limits]\npids_max = 300\n")
    (record,) = [record for record in caplog.records if record.message == "these settings need a restart"]
    assert vars(record)["settings"] == ["engine.pull", "sandbox.uid_first"]
    (record,) = [record for record in caplog.records if record.message == "reloaded"]
    assert vars(record)["changed"] == ["limits.pids_max"]
    assert await refused(reloading.running, pids_limit=400) == "POLICY_DENIED"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[limits]\npids_max = 300\ncpu_mx = 3\n", "line 3"),
        ("[limits]\npids_max = 300\n\n[log]\nlevel = 'loud'\n", "line 5"),
        ("[limits]\npids_max = 300\ncpu_max =\n", "line 3"),
        pytest.param("[limits]\npids_max = " + "9" * 5000, "is not TOML", id="a number too long"),
        pytest.param("[limits]\npids_max = 300\nx = " + "[" * 100_000, "is not TOML", id="tables too deep"),
    ],
)
async def test_a_file_with_a_mistake_changes_nothing_and_is_counted(
    reloading: Reloading, caplog: pytest.LogCaptureFixture, text: str, line: str
):
    await reloading.reload(text, "error")
    assert await reloading.sample("enclaved_config_last_reload_successful") == "0.0"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message == "reload failed; the configuration stays as it was"
    (problem,) = vars(record)["problems"]
    assert line in problem
    await reloading.running.create()  # with 300 processes at most, the default of 256 is still granted
    request = sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec(pids_limit=400))
    await reloading.running.sandbox_stub.CreateSandbox(request)
    await reloading.reload("")
    assert await reloading.sample("enclaved_config_last_reload_successful") == "1.0"
