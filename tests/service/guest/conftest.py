"""The real core over the real guest as a child process: everything but Docker and the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.guest.laboratory import Box, Laboratory, laboratory


@pytest.fixture
async def lab() -> AsyncIterator[Laboratory]:
    """See `Laboratory`."""
    async with laboratory() as made:
        yield made


@pytest.fixture
async def box(lab: Laboratory) -> Box:
    """A running sandbox of its own for each test."""
    return await lab.box()
