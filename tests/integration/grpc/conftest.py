"""A daemon that the tests of this folder share, and the command that they call it with."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.failures.ground import DaemonProcess, Ground
from tests.integration.grpc.client import Buf


@pytest.fixture(scope="session")
def daemon(default_image: str) -> Iterator[DaemonProcess]:
    """A daemon on the real engine."""
    ground = Ground()
    try:
        started = asyncio.run(ground.daemon())
        yield started
        started.check_log()
        started.send(signal.SIGTERM)
        assert asyncio.run(started.ended()) == 0
        assert ground.containers() == []
    finally:
        ground.clear()


@pytest.fixture
def buf(daemon: DaemonProcess) -> Buf:
    """See `Buf`. The command comes with the package buf-bin, beside our interpreter."""
    program = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    assert program is not None, "install buf-bin (it is in the dev extra)"
    return Buf(program, daemon.socket)
