"""Prometheus' own programs, from Debian's package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.daemons import Running, daemon, settings_in, short_directory

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder that holds prometheus and promtool."""
    command = [sys.executable, SCRIPTS / "ensure-prometheus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"scripts/ensure-prometheus failed: {done.stderr.strip()}", pytrace=False)
    return Path(done.stdout.strip())


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        yield running
