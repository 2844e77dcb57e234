"""One daemon of our own for all documented behaviour, and sandboxes that tests of a file share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave._local import process_daemons
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

MEMORY = "192m"


@pytest.fixture(scope="session", autouse=True)
def _a_daemon_of_our_own(default_image: str) -> Iterator[None]:
    """Tests start the daemon of this process; one that serves this machine is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_daemons(), "_system_socket", Path("/nonexistent"))
        yield


@pytest.fixture
def config() -> DockerSandboxConfig:
    """A small sandbox with all tools."""
    return DockerSandboxConfig(memory_limit=MEMORY)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A running sandbox, shared by the tests of a file. It outlives the event loop in which it was started."""
    made = SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit=MEMORY))
    asyncio.run(made.start())
    yield made
    asyncio.run(made.cleanup())


@pytest.fixture(scope="module")
def manager() -> Iterator[LocalSandboxManager]:
    """A manager, shared by the tests of a file, which delete what they make."""
    made = LocalSandboxManager()
    asyncio.run(made.start())
    yield made
    asyncio.run(made.stop())
