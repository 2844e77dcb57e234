"""Who is answered at the endpoint for Prometheus: no web page, whatever name it has resolve to this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from enclaved.config import Settings
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory

PATHS = ("/metrics", "/healthz", "/readyz", "/nothing")


@asynccontextmanager
async def serving(**flags: str) -> AsyncIterator[Running]:
    async with short_directory() as folder:
        settings: Settings = settings_in(folder, **flags)
        async with daemon(settings) as running:
            yield running


async def status(running: Running, path: str, *headers: str, version: str = "1.1") -> int:
    """Asks on a connection of its own, with these headers and no other but what closes it."""
    host, _, port = running.addresses.metrics.rpartition(":")
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            lines = (f"GET {path} HTTP/{version}", *headers, "Connection: close", "", "")
            writer.write("\r\n".join(lines).encode())
            return int((await reader.read())[9:12])
        finally:
            writer.close()


async def test_pages_that_have_their_name_resolve_to_this_machine_learn_nothing():
    async with serving() as running:
        for host in ("evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.evil.example", "", "["):
            assert {await status(running, path, f"Host: {host}") for path in PATHS} == {400}
        assert await status(running, "/metrics", "Host: localhost", "Host: evil.example") == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9464", "127.0.0.1:1", "[::1]:9464", "box.example:9464"])
async def test_addresses_loopback_names_and_the_operators_are_answered(host: str):
    async with serving(http__hosts="box.example") as running:
        assert [await status(running, path, f"Host: {host}") for path in PATHS] == [200, 200, 200, 404]


async def test_the_name_of_the_listener_is_one_of_its_names():
    async with serving(listen__metrics="localhost:0") as running:
        assert await status(running, "/metrics", "Host: localhost:1") == 200


async def test_pages_of_other_origins_are_refused_also_under_an_address():
    async with serving() as running:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert await status(running, "/metrics", "Host: 127.0.0.1:9464", f"Origin: {origin}") == 403
        assert await status(running, "/metrics", "Host: 127.0.0.1:9464", "Origin: http://127.0.0.1:9464") == 200


async def test_probes_that_name_no_host_are_answered():
    async with serving() as running:
        assert await status(running, "/healthz", version="1.0") == 200
        assert await status(running, "/healthz", "Origin: http://evil.example", version="1.0") == 403
