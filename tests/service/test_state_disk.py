"""A state directory that is taken away from a daemon that runs, or that lies where nothing can be written."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb

from enclaved.core.state import DATABASE_NAME
from enclaved.daemon import StartError
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import Running, daemon, python, settings_in, short_directory
from tests.service.edge import details


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as made:
        yield made


async def refused(running: Running, sandbox_id: str) -> str:
    """Fails to create a sandbox; returns why."""
    with pytest.raises(aio.AioRpcError) as caught:
        await running.create(sandbox_id)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = details(caught.value)["ErrorInfo"]
    assert 'reason: "NO_SPACE"' in str(info)
    return caught.value.details() or ""


async def works(running: Running) -> bool:
    answer = await running.execution_stub.Run(pb.RunRequest(spec=python("print(6 * 7)")))
    return bool(answer.stdout == b"42\n")


async def test_without_its_database_a_daemon_begins_nothing_and_what_runs_goes_on(folder: Path) -> None:
    async with daemon(settings_in(folder)) as running:
        await running.create()
        database = folder / "state" / DATABASE_NAME
        database.rename(folder / "taken")
        text = await refused(running, "more")
        assert "state.db was removed or replaced while the daemon ran; restart the daemon" in text
        _, metrics = await running.get("/metrics")
        assert "enclaved_state_writable 0.0" in metrics
        (folder / "taken").rename(database)
        await running.create("more")
        assert await works(running)
        _, metrics = await running.get("/metrics")
        assert "enclaved_state_writable 1.0" in metrics


async def test_sandboxes_that_the_next_daemon_would_not_know_of_are_not_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = SubprocessRuntime()
    async with daemon(settings_in(folder, daemon__keep_sandboxes_on_stop="true"), runtime=runtime) as running:
        await running.create()
        (folder / "state" / DATABASE_NAME).unlink()
    assert "the next daemon would not know of them" in caplog.text
    assert await runtime.list_records() == []


async def test_a_database_of_which_something_is_missing_stops_a_start_with_a_reason(folder: Path) -> None:
    async with daemon(settings_in(folder)) as running:
        await running.create()
        database = folder / "state" / DATABASE_NAME
        log, index = (database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm"))
        whole = {path: path.read_bytes() for path in (database, log, index)}  # as a kill would leave them
    for path, content in whole.items():
        path.write_bytes(content)
    os.truncate(log, log.stat().st_size - 100)
    with pytest.raises(StartError, match="its log of writes is damaged"):
        async with daemon(settings_in(folder)):
            pass
    log.write_bytes(whole[log])
    async with daemon(settings_in(folder)):
        pass
