"""The HTTP API of a whole daemon over the subprocess runtime, and a client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with daemon(settings_in(folder, listen__http=f"unix:{folder}/h.sock")) as running:
        yield running


@pytest.fixture
async def api(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=running.addresses.http.removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client:
        yield client
