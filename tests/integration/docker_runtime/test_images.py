"""Finding images on a real engine, with a registry of the test's own on the loopback."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import platform
import tarfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from enclaved.errors import ImageNotFound, ImageUnusable, InvalidRequest

from .conftest import DEFAULT_IMAGE

pytestmark = pytest.mark.docker

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass
class Registry:
    """An image registry with one small image, ``pulled:1``. Counts what is asked of it."""

    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    contacted: asyncio.Event = field(default_factory=asyncio.Event)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""

    def __post_init__(self) -> None:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("hello"), io.BytesIO())
        digest = self._add(layer.getvalue())
        config = {
            "architecture": MACHINES[platform.machine()],
            "os": "linux",
            "config": {"Env": ["PATH=/bin", "A=b=c"], "Volumes": {"/data": {}}},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._entry("container.image.v1", self._add(json.dumps(config).encode())),
                "layers": [self._entry("image.rootfs.diff.tar", digest)],
            }
        ).encode()

    def _add(self, content: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def _entry(self, kind: str, digest: str) -> dict[str, object]:
        media_type = f"application/vnd.docker.{kind}" + ("+json" if kind.startswith("container") else "")
        return {"mediaType": media_type, "size": len(self.blobs[digest]), "digest": digest}

    async def answer(self, request: web.Request) -> web.Response:
        """Answers the few requests that a pull needs."""
        path = request.path
        self.asked[f"{request.method} {path}"] += 1
        self.contacted.set()
        if path == "/v2/":
            return web.json_response({})
        if path.startswith("/v2/pulled/manifests/"):
            digest = "sha256:" + hashlib.sha256(self.manifest).hexdigest()
            return web.Response(body=self.manifest, content_type=MANIFEST, headers={"Docker-Content-Digest": digest})
        if (blob := self.blobs.get(path.rpartition("/")[2])) is not None:
            return web.Response(body=blob, content_type="application/octet-stream")
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}, status=404)


@pytest.fixture
async def registry(engine) -> AsyncIterator[Registry]:
    """See `Registry`. What was pulled from it is removed afterwards."""
    made = Registry()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()
    for image in await engine.images.list(filters={"reference": [f"127.0.0.1:{made.port}/pulled"]}):
        await engine.images.delete(image["Id"], force=True)


async def test_an_image_is_found_by_its_name(runtime):
    image = await runtime.resolve_image(DEFAULT_IMAGE, may_pull=False)
    assert image.name == DEFAULT_IMAGE
    assert image.id.startswith("sha256:")
    assert image.volumes == ()
    assert "PATH" in image.env


@pytest.mark.parametrize(
    "spelling", ["python:3.11-slim", "docker.io/library/python:3.11-slim", "library/python:3.11-slim"]
)
async def test_an_alias_stands_in_for_every_spelling_of_a_name(runtime, spelling):
    by_alias = await runtime.resolve_image(spelling, may_pull=False)
    assert by_alias == await runtime.resolve_image(DEFAULT_IMAGE, may_pull=False)


async def test_an_image_is_found_by_its_digest(runtime):
    by_name = await runtime.resolve_image(DEFAULT_IMAGE, may_pull=False)
    assert (await runtime.resolve_image(by_name.id, may_pull=True)).id == by_name.id


async def test_the_begin_of_an_images_id_is_no_name_of_it(runtime):
    whole = (await runtime.resolve_image(DEFAULT_IMAGE, may_pull=False)).id
    for length in (4, 12, 63):
        with pytest.raises(ImageNotFound):
            await runtime.resolve_image(whole.removeprefix("sha256:")[:length], may_pull=False)


async def test_an_image_that_is_not_there_is_not_pulled_unless_it_may_be(runtime, registry):
    name = f"127.0.0.1:{registry.port}/pulled:1"
    with pytest.raises(ImageNotFound, match="scripts/build-image") as caught:
        await runtime.resolve_image(name, may_pull=False)
    assert "images.aliases" in str(caught.value)
    assert registry.asked == {}


async def test_two_callers_wait_for_one_pull(runtime, registry):
    name = f"127.0.0.1:{registry.port}/pulled:1"
    first, second = await asyncio.gather(*(runtime.resolve_image(name, may_pull=True) for _ in range(2)))
    assert first == second
    assert (first.name, first.env, first.volumes) == (name, {"PATH": "/bin", "A": "b=c"}, ("/data",))
    assert sum(times for asked, times in registry.asked.items() if "/manifests/1" in asked) <= 2  # HEAD and GET
    assert max(times for asked, times in registry.asked.items() if "/blobs/" in asked) == 1


async def test_who_leaves_does_not_end_the_pull_of_another(runtime, registry):
    name = f"127.0.0.1:{registry.port}/pulled:1"
    leaving, staying = (asyncio.create_task(runtime.resolve_image(name, may_pull=True)) for _ in range(2))
    await registry.contacted.wait()
    leaving.cancel()
    assert (await staying).name == name
    assert leaving.cancelled()


async def test_a_pull_that_fails_says_why_and_what_to_do(runtime, registry):
    name = f"127.0.0.1:{registry.port}/unknown:1"
    with pytest.raises(ImageNotFound, match="cannot be pulled") as caught:
        await runtime.resolve_image(name, may_pull=True)
    assert f"docker pull {name}" in str(caught.value)


async def test_a_registry_that_does_not_answer_is_told_as_the_reason(runtime):
    with pytest.raises(ImageNotFound, match="connection refused"):
        await runtime.resolve_image("127.0.0.1:1/none:1", may_pull=True)


@pytest.mark.parametrize("name", ["", "Upper:1", "a b", "../../containers/json", "a?b", "a:1#", "x\n", "a" * 600])
async def test_what_is_no_image_name_reaches_no_engine(runtime, name):
    with pytest.raises(InvalidRequest, match=r"spec\.image"):
        await runtime.resolve_image(name, may_pull=True)


async def test_an_image_whose_volume_would_hide_the_system_is_unusable(runtime, build):
    tag = await build("FROM scratch\nVOLUME /usr\n")
    with pytest.raises(ImageUnusable, match="/usr"):
        await runtime.resolve_image(tag, may_pull=False)
