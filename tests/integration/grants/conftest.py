"""A daemon as a program starts it for itself, which grants networks and what lies below the test's folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

from enclaved.config.settings import NetworkOptions
from enclaved.core.ownership import Ownership
from enclaved.runtime.base import LABEL_OWNER
from enclaved.runtime.docker import detect_engine_url
from tests.service.daemons import Running, daemon, settings_in

MEMORY = "192m"
GATEWAY = """
import socket
with open('/proc/net/route') as routes:
    gateway = socket.inet_ntoa(bytes.fromhex(list(routes)[1].split()[2])[::-1])
"""
"""Code that finds the host's end of a sandbox's network."""
OWNER = 1234
"""A user to whom a directory may belong."""


@dataclass
class House:
    """A daemon, a folder whose directories it may mount, and the engine to look at."""

    running: Running
    manager: LocalSandboxManager
    folder: Path
    engine: aiodocker.Docker

    def place(self, name: str, *, owner: int = 0, mode: int = 0o755) -> Path:
        """Makes a directory of somebody's."""
        made = self.folder / name
        made.mkdir()
        os.chown(made, owner, owner)
        made.chmod(mode)
        return made

    async def sandbox(self, **asked: Any) -> DockerSandbox:
        """Creates a sandbox of which this is asked."""
        config = DockerSandboxConfig(memory_limit=MEMORY, **asked)
        sandbox_id = await self.manager.create_sandbox(SandboxType.DOCKER, config)
        found = await self.manager.get_sandbox(sandbox_id)
        assert isinstance(found, DockerSandbox)
        return found

    async def inspect(self, sandbox_id: str) -> dict[str, Any]:
        """What the engine says of a sandbox's container."""
        found = await self.engine.containers.list(filters={"label": [f"enclaved.id={sandbox_id}"]})
        shown: dict[str, Any] = await found[0].show()
        return shown

    async def networks(self) -> list[str]:
        """Names of the daemon's networks."""
        label = f"{LABEL_OWNER}={Ownership.of(Path(self.running.settings.state.dir)).owner}"
        return sorted(each["Name"] for each in await self.engine.networks.list(filters={"label": [label]}))


async def said(sandbox: DockerSandbox, command: str) -> str:
    """What a command in a sandbox prints; it must end well."""
    result = await sandbox.execute_command(command)
    assert result.exit_code == 0, result
    return (result.stdout or "").strip()


async def python(sandbox: DockerSandbox, code: str) -> str:
    """What a program in a sandbox prints."""
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.success, result
    return str(result.output).strip()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder to which every user has a way."""
    made = Path(tempfile.mkdtemp(prefix="eg", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def house(folder: Path, default_image: str) -> AsyncIterator[House]:
    """See `House`. Nothing of it is left on the engine at the end."""
    async with a_house(folder) as made:
        yield made


@asynccontextmanager
async def a_house(folder: Path, *, dns: Sequence[str] = (), **flags: str) -> AsyncIterator[House]:
    """A house whose daemon has these settings."""
    home = Path(tempfile.mkdtemp(prefix="ed", dir="/tmp"))
    places = Path(tempfile.mkdtemp(dir=folder))
    places.chmod(0o755)
    try:
        async with aiodocker.Docker(detect_engine_url()) as engine:
            settings = settings_in(home, **flags)
            settings = settings.model_copy(update={"network": NetworkOptions(dns=list(dns))})
            async with (
                daemon(settings, runtime=None, embedded=True, working_dir=str(places)) as running,
                LocalSandboxManager(address=f"unix:{running.addresses.unix}") as manager,
            ):
                made = House(running, manager, places, engine)
                yield made
            assert await made.networks() == []
    finally:
        shutil.rmtree(home)
