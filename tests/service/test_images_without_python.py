"""What a daemon does with an image in which no guest can run, without an engine."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import aio

from enclaved.agent.interpreter import FORMAT
from enclaved.config import Settings
from enclaved.errors import ImageUnusable
from enclaved.runtime.base import ContainerPlan
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import daemon, settings_in, short_directory
from tests.service.edge import reason


@dataclass
class Tried:
    """A container that was asked for."""

    id: str
    interpreter_dir: Path | None
    removed: bool = False


class LackingRuntime(SubprocessRuntime):
    """Has an image in whose containers only an interpreter of the guest's own can run."""

    lacks_python = True

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[Tried] = []

    async def create(self, plan: ContainerPlan) -> str:
        assert all(tried.removed or tried.interpreter_dir for tried in self.tried)
        container_id = await super().create(plan)
        self.tried.append(Tried(container_id, plan.interpreter_dir))
        return container_id

    @asynccontextmanager
    async def starting(self, container_id: str):
        if self.tried[-1].interpreter_dir is None:
            raise ImageUnusable("no-python:1", "it has no python3", lacks_python=self.lacks_python)
        async with super().starting(container_id) as tail:
            yield tail

    async def remove(self, container_id: str) -> None:
        await super().remove(container_id)
        for tried in self.tried:
            tried.removed |= tried.id == container_id


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """See `short_directory`."""
    async with short_directory() as made:
        yield made


@pytest.fixture
def interpreter_dir(tmp_path: Path) -> Path:
    """A folder that looks like an interpreter to the daemon."""
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    return tmp_path


def settings(folder: Path, guest_runtime: Path) -> Settings:
    """Settings of a daemon that looks there for the interpreter."""
    return settings_in(folder, sandbox__guest_runtime=str(guest_runtime))


async def test_the_first_sandbox_is_made_once_more_and_later_ones_at_once(folder, interpreter_dir, caplog):
    caplog.set_level(logging.INFO)
    runtime = LackingRuntime()
    async with daemon(settings(folder, interpreter_dir), runtime=runtime) as running:
        for name in ("a", "b", "c"):
            await running.create(name)
        assert [tried.interpreter_dir for tried in runtime.tried] == [None, *[interpreter_dir] * 3]
        assert [tried.removed for tried in runtime.tried] == [True, False, False, False]
    assert [record.message for record in caplog.records].count("image without Python") == 1


async def test_an_interpreter_that_went_away_since_then_is_missed(folder, interpreter_dir):
    runtime = LackingRuntime()
    async with daemon(settings(folder, interpreter_dir), runtime=runtime) as running:
        await running.create("a")
        (interpreter_dir / "manifest.json").unlink()
        with pytest.raises(aio.AioRpcError) as caught:
            await running.create("b")
        assert reason(caught.value) == "IMAGE_UNUSABLE"
        assert runtime.tried[-1].removed


async def test_an_image_that_is_unusable_for_another_reason_is_not_tried_again(folder, interpreter_dir):
    runtime = LackingRuntime()
    runtime.lacks_python = False
    async with daemon(settings(folder, interpreter_dir), runtime=runtime) as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await running.create()
        assert reason(caught.value) == "IMAGE_UNUSABLE"
        assert [tried.interpreter_dir for tried in runtime.tried] == [None]
