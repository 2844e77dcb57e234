"""A daemon and a sandbox that tests share, and ground on which a test may break things."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import aiodocker
import pytest
from grpc import aio
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType

from enclaved.runtime.docker import detect_engine_url
from tests.integration.failures.ground import DaemonProcess, Ground, Stubs


@pytest.fixture
def ground(default_image: str) -> Iterator[Ground]:
    """See `Ground`."""
    made = Ground()
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture(scope="session")
def daemon(default_image: str) -> Iterator[DaemonProcess]:
    """A daemon that outlives everything that tests throw at it, and ends well after them."""
    made = Ground()
    try:
        started = asyncio.run(made.daemon())
        yield started
        assert started.process.poll() is None, f"it did not survive the tests:\n{started.text}"
        started.check_log()
        started.send(signal.SIGTERM)
        assert asyncio.run(started.ended()) == 0
        assert made.containers() == []
    finally:
        made.clear()


@pytest.fixture(scope="module")
def manager(daemon: DaemonProcess) -> Iterator[LocalSandboxManager]:
    """A manager at that daemon."""
    made = LocalSandboxManager(address=daemon.address)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.stop())


@pytest.fixture(scope="module")
def shared_sandbox(manager: LocalSandboxManager) -> Sandbox:
    """A sandbox that the tests of a file share."""

    async def make() -> Sandbox:
        sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": "192m"})
        found = await manager.get_sandbox(sandbox_id)
        assert found is not None
        return found

    return asyncio.run(make())


@pytest.fixture
async def sandbox(shared_sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    """The shared sandbox, which works before and after the test, in the same interpreter."""
    await shared_sandbox.execute_tool("python_executor", {"code": "answer = 6 * 7"})
    yield shared_sandbox
    result = await shared_sandbox.execute_tool("python_executor", {"code": "print(answer)"})
    assert result.output == "42\n", f"it does not go on: {result}"


@pytest.fixture
async def stubs(daemon: DaemonProcess) -> AsyncIterator[Stubs]:
    """The daemon's services without the SDK."""
    async with aio.insecure_channel(daemon.address) as channel:
        yield Stubs(channel)


@pytest.fixture
async def engine(default_image: str) -> AsyncIterator[aiodocker.Docker]:
    """The engine, for doing things behind the daemon's back."""
    async with aiodocker.Docker(detect_engine_url()) as docker:
        yield docker
