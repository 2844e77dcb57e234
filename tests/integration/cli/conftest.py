"""The command ``ms-enclave`` as its users run it, at a daemon that the tests share."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.failures.ground import PATIENCE_S, DaemonProcess, Ground


@dataclass(frozen=True)
class Command:
    """The command, in the environment of a test."""

    environment: dict[str, str]

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Starts it with its standard streams in our hands. It is over when the block is."""
        command = [sys.executable, "-P", "-m", "ms_enclave.cli", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self.environment, cwd="/", stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                yield process
            except BaseException:
                process.terminate()
                raise

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Runs it to its end."""
        with self.start(*arguments) as process:
            out, err = process.communicate(stdin, timeout=PATIENCE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        """Runs it and reads what it prints; it must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def daemon(default_image: str) -> Iterator[DaemonProcess]:
    """A daemon whose sandboxes are all gone after the tests, by what the commands did alone."""
    ground = Ground()
    try:
        started = asyncio.run(ground.daemon())
        yield started
        assert ground.containers() == []
        started.check_log()
        started.send(signal.SIGTERM)
        assert asyncio.run(started.ended()) == 0
    finally:
        ground.clear()


@pytest.fixture
def command(daemon: DaemonProcess, ground: Ground) -> Command:
    """The command at the shared daemon."""
    return Command(ground.environment(MS_ENCLAVE_ADDRESS=daemon.address))


@pytest.fixture
def ground(default_image: str) -> Iterator[Ground]:
    """A directory, and the certainty that nothing stays."""
    made = Ground()
    try:
        yield made
    finally:
        made.clear()
