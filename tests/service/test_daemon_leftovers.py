"""What an earlier daemon left is removed by the next one, which does not leave in the middle of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from enclaved.core.ownership import Ownership
from enclaved.runtime.base import ContainerRecord
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import daemon, settings_in, short_directory


class Engine(SubprocessRuntime):
    """Has a container that an earlier daemon made, and takes its time to remove it."""

    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__()
        self.left = ContainerRecord("leftover", labels, running=True)
        self.removing = asyncio.Event()
        self.removed: list[str] = []
        self.closed_after: list[str] | None = None

    async def list_records(self) -> list[ContainerRecord]:
        return [self.left, *await super().list_records()]

    async def remove(self, container_id: str) -> None:
        if container_id == self.left.id:
            self.removing.set()
            await asyncio.sleep(0.3)
            self.removed.append(container_id)
        else:
            await super().remove(container_id)

    async def close(self) -> None:
        self.closed_after = list(self.removed)
        await super().close()


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


async def test_a_daemon_that_is_stopped_finishes_a_removal_that_it_has_begun(folder: Path) -> None:
    settings = settings_in(folder)
    state_dir = Path(settings.state.dir)
    state_dir.mkdir()
    engine = Engine(Ownership.of(state_dir).labels("old", 1))
    async with daemon(settings, runtime=engine) as running:
        await engine.removing.wait()
        await running.create()  # the daemon works meanwhile
        await running.ended()
    assert engine.closed_after == ["leftover"]
