"""What the clients in other languages need: a daemon that listens on a unix socket and on TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping

import pytest

from tests.integration.failures.ground import Ground


@pytest.fixture(scope="session")
def addresses(default_image: str) -> Iterator[Mapping[str, str]]:
    """The addresses of one daemon, whose sandboxes are all gone after the tests."""
    ground = Ground()
    try:
        tcp = f"127.0.0.1:{free_port()}"
        daemon = asyncio.run(ground.daemon("--listen-tcp", tcp))
        yield {"unix socket": daemon.address, "TCP": tcp}
        assert ground.containers() == []
        daemon.check_log()
    finally:
        ground.clear()


def free_port() -> int:
    """Returns a port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
