"""What the tests of the core share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.core import scripted
from tests.unit.core.scripted import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """See `World`."""
    async with scripted.world() as made:
        yield made
