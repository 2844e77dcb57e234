"""A short directory for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.daemons import short_directory


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder
