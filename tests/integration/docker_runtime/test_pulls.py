"""Pulls that tell how far they are. No registry is needed: a small engine on a unix socket stands in."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from enclaved.errors import EngineUnavailable, ImageNotFound, InvalidRequest
from enclaved.model import PullProgress
from enclaved.runtime.docker import Deadlines, DockerRuntime
from enclaved.runtime.docker.pulls import LAYERS_MAX

ID = "sha256:" + "ab" * 32
LAYER, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """A response that was left open complains here, and no later."""
    yield
    gc.collect()


class Registry:
    """An engine that pulls one image: it says what ``say`` puts in, until ``end``."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.pulls = 0
        self.asked: dict[str, str] = {}
        self.cut = asyncio.Event()
        self.has_image = self.fails = self.hangs = False

    def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.words.put_nowait(message)

    def end(self) -> None:
        self.words.put_nowait(None)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v1.41")
        if path == "/version":
            return web.json_response({"ApiVersion": "1.41"})
        if path == "/images/create":
            return await self._pull(request)
        if self.has_image:
            return web.json_response({"Id": ID, "Os": "linux", "Config": {}})
        return web.json_response({"message": "No such image"}, status=404)

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        self.pulls += 1
        self.asked = dict(request.query)
        if self.hangs:
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            while (message := await self.words.get()) is not None:
                await response.write(json.dumps(message).encode() + b"\r\n")
        except asyncio.CancelledError:
            self.cut.set()
            raise
        self.has_image = not self.fails
        return response


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    made = Registry()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, tmp_path / "e.sock").start()
    yield made
    await runner.cleanup()


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[DockerRuntime]:
    made = DockerRuntime(f"unix://{tmp_path}/e.sock", deadlines=Deadlines(pull_s=30.0))
    yield made
    await made.close()


def downloading(layer: str, current: Any, total: Any = 100) -> dict[str, Any]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": total}}


async def test_a_pull_tells_how_far_each_layer_is_and_ends_with_the_image(
    registry: Registry, runtime: DockerRuntime
) -> None:
    registry.say({"status": "Pulling from library/x", "id": "1"})
    async with aclosing(runtime.pull_image("x:1")) as steps:
        assert await anext(steps) == PullProgress("", "Pulling from library/x")
        registry.say(downloading(LAYER, 10))
        assert await anext(steps) == PullProgress(LAYER, "Downloading", 10, 100)
        registry.say({"status": "Pull complete", "id": LAYER, "progressDetail": {}})
        assert await anext(steps) == PullProgress(LAYER, "Pull complete")
        registry.end()
        assert (await anext(steps)).image_id == ID
        with pytest.raises(StopAsyncIteration):
            await anext(steps)


async def test_a_slow_reader_gets_the_latest_of_each_layer(registry: Registry, runtime: DockerRuntime) -> None:
    registry.say(downloading(OTHER, 0))
    async with aclosing(runtime.pull_image("x:1")) as steps:
        await anext(steps)
        registry.say(*(downloading(LAYER, number, 5000) for number in range(5001)), downloading(OTHER, 100))
        registry.end()
        await runtime.resolve_image("x:1", may_pull=True)  # which waits for the same pull
        rest = [step async for step in steps]
    assert rest[:2] == [PullProgress(LAYER, "Downloading", 5000, 5000), PullProgress(OTHER, "Downloading", 100, 100)]
    assert rest[2].image_id == ID
    assert registry.pulls == 1


async def test_one_who_comes_later_follows_the_same_pull(registry: Registry, runtime: DockerRuntime) -> None:
    registry.say(downloading(LAYER, 10))
    async with aclosing(runtime.pull_image("x:1")) as first:
        await anext(first)
        async with aclosing(runtime.pull_image("x:1")) as second:
            assert await anext(second) == PullProgress(LAYER, "Downloading", 10, 100)
            registry.end()
            assert [step.image_id async for step in second] == [ID]
        assert [step.image_id async for step in first] == [ID]
    assert registry.pulls == 1


async def test_one_who_leaves_does_not_end_the_pull(registry: Registry, runtime: DockerRuntime) -> None:
    registry.say(downloading(LAYER, 10))
    async with aclosing(runtime.pull_image("x:1")) as steps:
        await anext(steps)
    waiting = asyncio.create_task(runtime.resolve_image("x:1", may_pull=True))
    registry.end()
    assert (await waiting).id == ID
    assert registry.pulls == 1


async def test_what_makes_no_sense_in_an_engines_words_is_left_out(registry: Registry, runtime: DockerRuntime) -> None:
    registry.say(
        {"status": 5},
        {"no": "status"},
        {"status": "x" * 1000, "id": ["?"], "progressDetail": "?"},
        downloading(LAYER, -5, "many"),
    )
    registry.end()
    steps = [step async for step in runtime.pull_image("x:1")]
    assert steps[:2] == [PullProgress("", "x" * 200), PullProgress(LAYER, "Downloading", 0, 0)]
    assert len(steps) == 3


async def test_there_is_a_limit_to_the_layers_that_are_followed(registry: Registry, runtime: DockerRuntime) -> None:
    registry.say(*(downloading(f"{number:012x}", 1) for number in range(LAYERS_MAX + 50)))
    registry.end()
    steps = [step async for step in runtime.pull_image("x:1")]
    assert len({step.layer for step in steps if step.layer}) == LAYERS_MAX


async def test_an_image_that_no_registry_has_is_not_found_and_the_hint_says_what_to_do(
    registry: Registry, runtime: DockerRuntime
) -> None:
    registry.say({"error": "manifest for x:1 not found", "errorDetail": {"message": "manifest for x:1 not found"}})
    registry.fails = True
    registry.end()
    with pytest.raises(ImageNotFound, match=r"manifest for x:1 not found.*scripts/build-image"):
        _ = [step async for step in runtime.pull_image("x:1")]


async def test_a_pull_that_takes_too_long_fails_for_those_who_follow_it(tmp_path: Path, registry: Registry) -> None:
    registry.hangs = True
    runtime = DockerRuntime(f"unix://{tmp_path}/e.sock", deadlines=Deadlines(pull_s=0.2))
    with pytest.raises(EngineUnavailable, match="pull image x:1"):
        _ = [step async for step in runtime.pull_image("x:1")]
    await runtime.close()


async def test_the_engine_is_told_when_a_pull_breaks_off(tmp_path: Path, registry: Registry) -> None:
    registry.say(downloading(LAYER, 10))
    runtime = DockerRuntime(f"unix://{tmp_path}/e.sock", deadlines=Deadlines(pull_s=0.2))
    with pytest.raises(EngineUnavailable, match="pull image x:1"):
        _ = [step async for step in runtime.pull_image("x:1")]
    async with asyncio.timeout(30):
        await registry.cut.wait()
    await runtime.close()


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("x", {"fromImage": "x", "tag": "latest"}),
        ("x:1", {"fromImage": "x:1"}),
        ("localhost:5000/x", {"fromImage": "localhost:5000/x", "tag": "latest"}),
        (f"x@{ID}", {"fromImage": f"x@{ID}"}),
    ],
)
async def test_one_tag_is_pulled_and_not_all(
    registry: Registry, runtime: DockerRuntime, image: str, asked: dict[str, str]
) -> None:
    registry.end()
    _ = [step async for step in runtime.pull_image(image)]
    assert registry.asked == asked


async def test_what_is_no_name_is_never_pulled(registry: Registry, runtime: DockerRuntime) -> None:
    with pytest.raises(InvalidRequest):
        await anext(runtime.pull_image("no name"))
    assert registry.pulls == 0
