"""A link, for every test that wants one."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.agent.house import House, opened


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a link's directory can be: paths of sockets are short, and those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="link") as folder:
        yield Path(folder) / "s"


@pytest.fixture
async def house(place: Path) -> AsyncIterator[House]:
    """See `House`."""
    async with opened(place) as made:
        yield made
