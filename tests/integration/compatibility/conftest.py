"""A sandbox with the default profile, shared by the tests of a file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave._local import process_daemons
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType


@pytest.fixture(scope="session", autouse=True)
def _a_daemon_of_our_own(default_image: str) -> Iterator[None]:
    """Tests start the daemon of this process; one that serves this machine is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_daemons(), "_system_socket", Path("/nonexistent"))
        yield


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig())
    asyncio.run(made.start())
    yield made
    asyncio.run(made.cleanup())
