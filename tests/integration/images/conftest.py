"""Images without Python, and a daemon that has the interpreter for them."""

from __future__ import annotations

import asyncio
import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType

from enclaved.runtime.docker import detect_engine_url
from tests.integration.failures.ground import DaemonProcess, Ground
from tests.scripts.loading import load


@pytest.fixture(scope="session")
def guest_runtime(default_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter for images without Python, as the script leaves it in the cache."""
    made: Path = load("build-guest-runtime").build(None, mirror="", force=False)
    return made


@pytest.fixture(scope="session")
def daemon(guest_runtime: Path) -> Iterator[DaemonProcess]:
    """A daemon that has that interpreter."""
    ground = Ground()
    try:
        started = asyncio.run(ground.daemon("--sandbox-guest-runtime", str(guest_runtime)))
        yield started
        started.check_log()
    finally:
        ground.clear()


@pytest.fixture(scope="session")
def images(default_image: str) -> Iterator[dict[str, str]]:
    """Images by what they are like; each has no Python."""
    with (
        _imported({}) as empty,
        _built(f"FROM {default_image}\n{_REMOVE_PYTHON}{_NODE}") as node_like,
        _built(f"FROM {default_image}\n{_REMOVE_PYTHON}{_OLD_PYTHON}") as old,
    ):
        yield {"empty": empty, "node-like": node_like, "old Python": old}


@pytest.fixture
async def make(daemon: DaemonProcess) -> AsyncIterator[Callable[[str], Any]]:
    """Makes a sandbox of an image."""
    async with LocalSandboxManager(address=daemon.address) as manager:

        async def make(image: str) -> Sandbox:
            sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, {"image": image, "memory_limit": "192m"})
            found = await manager.get_sandbox(sandbox_id)
            assert found is not None
            return found

        yield make


_REMOVE_PYTHON = "RUN rm -rf /usr/bin/python* /usr/bin/pip* /usr/bin/pydoc* /usr/lib/python3*\n"
_NODE = "RUN printf '#!/bin/bash\\necho v20.11.0\\n' > /usr/local/bin/node && chmod 755 /usr/local/bin/node\n"
_OLD_PYTHON = (
    "RUN printf '#!/bin/bash\\necho guest: Python 3.8 or newer is needed, and this is 3.6.9 >&2; exit 78\\n'"
    " > /usr/local/bin/python3 && chmod 755 /usr/local/bin/python3\n"
)


@contextmanager
def _imported(files: dict[str, bytes]) -> Iterator[str]:
    """An image that has these files and nothing else."""
    name = f"enclaved-test/{uuid.uuid4().hex}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed.seek(0)
    engine = load("_engine").Engine.from_environment()
    engine.import_image(f"{name}:1", packed, changes=[], sent=lambda _: None)
    try:
        yield f"{name}:1"
    finally:
        asyncio.run(_remove(f"{name}:1"))


@contextmanager
def _built(dockerfile: str) -> Iterator[str]:
    """An image made from a Dockerfile, without a registry."""
    tag = f"enclaved-test/{uuid.uuid4().hex}:1"

    async def build() -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("Dockerfile")
            member.size = len(dockerfile.encode())
            archive.addfile(member, io.BytesIO(dockerfile.encode()))
        packed.seek(0)
        async with aiodocker.Docker(detect_engine_url()) as docker:
            await docker.images.build(fileobj=packed, encoding="gzip", tag=tag)

    asyncio.run(build())
    try:
        yield tag
    finally:
        asyncio.run(_remove(tag))


async def _remove(image: str) -> None:
    async with aiodocker.Docker(detect_engine_url()) as docker:
        await docker.images.delete(image, force=True)
