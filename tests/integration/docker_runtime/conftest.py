"""A runtime on the real engine, and a stand-in for the guest: a few lines of Python that report over standard error."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from enclaved.model import SandboxSpec
from enclaved.runtime.base import LABEL_ID, LABEL_OWNER, ContainerPlan, GuestSettings, Image
from enclaved.runtime.docker import DockerRuntime, detect_engine_url

DEFAULT_IMAGE = "ms-enclave/python:3.11"
MIB = 1024 * 1024
UID = 1900000123
# Root can test with a group that is nobody's; others have only their own.
GROUP = 4242 if os.getuid() == 0 else os.getgid()

SLEEP = "import time; time.sleep(600)"
AS_PROGRAM = f"""
import json, os, sys
def as_program(work):
    "Runs work in a child that has become the sandbox's user, and returns what it returned."
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setgroups([]); os.setresgid({UID}, {UID}, {UID}); os.setresuid({UID}, {UID}, {UID})
        os.write(writing, json.dumps(work()).encode()); os._exit(0)
    os.close(writing)
    answer = b""
    while piece := os.read(reading, 65536):
        answer += piece
    os.wait()
    return json.loads(answer)
def tell(**report):
    sys.stderr.write(json.dumps(report)); sys.stderr.flush()
"""


@pytest.fixture
async def engine() -> AsyncIterator[aiodocker.Docker]:
    """The real engine, for looking at what the runtime did."""
    async with aiodocker.Docker(detect_engine_url()) as docker:
        yield docker


@pytest.fixture
async def runtime() -> AsyncIterator[DockerRuntime]:
    """The runtime on the real engine."""
    made = DockerRuntime(detect_engine_url(), image_aliases={"python:3.11-slim": DEFAULT_IMAGE})
    yield made
    await made.close()


@dataclass
class Workshop:
    """Makes plans and containers for one test, and takes them away after it."""

    runtime: DockerRuntime
    engine: aiodocker.Docker
    directory: Path
    image: Image
    owner: str

    def plan(self, guest: str = SLEEP, *, image: Image | None = None, **spec: Any) -> ContainerPlan:
        """A plan for a sandbox of its own, whose guest is this Python source."""
        sandbox_id = uuid.uuid4().hex
        # Short: the path of a unix socket may have 107 bytes.
        home = self.directory / sandbox_id[:8]
        socket_dir, account_dir = home / "socket", home / "account"
        for made in (home, socket_dir, account_dir):
            made.mkdir(mode=0o755)
        guest_file = home / "guest.py"
        guest_file.write_text(guest)
        guest_file.chmod(0o444)
        (account_dir / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nbox:x:{UID}:{UID}::/sandbox:/bin/sh\n")
        (account_dir / "hosts").write_text("127.0.0.1 localhost\n")
        (account_dir / "group").write_text(f"root:x:0:\nbox:x:{UID}:\n")
        full_spec = SandboxSpec(
            image=DEFAULT_IMAGE,
            memory_limit_bytes=128 * MIB,
            cpu_limit=1.0,
            pids_limit=64,
            working_dir_size_bytes=8 * MIB,
            tmp_size_bytes=4 * MIB,
            shm_size_bytes=2 * MIB,
            working_dir="/sandbox",
            env_vars={},
            tools=None,
            timeout_s=30.0,
            timeout_max_s=3600.0,
            ttl_s=3600.0,
            remove_on_exit=True,
        )
        return ContainerPlan(
            image=image or self.image,
            spec=replace(full_spec, **spec),
            settings=GuestSettings(
                sandbox_id=sandbox_id,
                uid=UID,
                working_dir="/sandbox",
                expires_in_s=600.0,
                daemon_absence_s=0.0,
                memory_limit_bytes=128 * MIB,
            ),
            guest_file=guest_file,
            socket_dir=socket_dir,
            account_dir=account_dir,
            group_id=GROUP,
            labels={LABEL_ID: sandbox_id, LABEL_OWNER: self.owner},
        )

    @asynccontextmanager
    async def running(self, plan: ContainerPlan) -> AsyncIterator[str]:
        """A container whose guest runs; the block has its id."""
        container_id = await self.runtime.create(plan)
        async with self.runtime.starting(container_id):
            yield container_id

    async def run(self, plan: ContainerPlan) -> str:
        """What a guest writes to standard error until it ends."""
        container_id = await self.runtime.create(plan)
        async with self.runtime.starting(container_id) as stderr:
            await self.ended(container_id)
            await self.runtime.status(container_id)
            return stderr.text()

    async def ended(self, container_id: str) -> None:
        """Waits until a container's guest has ended."""
        async with asyncio.timeout(60):
            await self.engine.containers.container(container_id).wait()

    async def inspect(self, container_id: str) -> dict[str, Any]:
        """What the engine says of a container."""
        return await self.engine.containers.container(container_id).show()

    async def ours(self) -> list[str]:
        """The ids of this test's containers."""
        return [r.id for r in await self.runtime.list_records() if r.labels.get(LABEL_OWNER) == self.owner]


@pytest.fixture
async def workshop(runtime: DockerRuntime, engine: aiodocker.Docker, tmp_path: Path) -> AsyncIterator[Workshop]:
    """See `Workshop`."""
    image = await runtime.resolve_image(DEFAULT_IMAGE, may_pull=False)
    made = Workshop(runtime, engine, tmp_path, image, owner=uuid.uuid4().hex)
    yield made
    for container_id in await made.ours():
        await runtime.remove(container_id)


@pytest.fixture
async def build(engine: aiodocker.Docker) -> AsyncIterator[Callable[[str], Any]]:
    """Builds an image from a Dockerfile, without a registry, and removes it after the test."""
    built = []

    async def build(dockerfile: str) -> str:
        tag = f"enclaved-test/{uuid.uuid4().hex}:1"
        context = _archive({"Dockerfile": dockerfile.encode()})
        await engine.images.build(fileobj=io.BytesIO(context), encoding="gzip", tag=tag)
        built.append(tag)
        return tag

    yield build
    for tag in built:
        await engine.images.delete(tag, force=True)


def _archive(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue())
