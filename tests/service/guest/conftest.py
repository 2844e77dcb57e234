"""The real core over the real guest as a child process: everything but Docker and the wire."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from tests.service.guest.laboratory import Box, Laboratory, laboratory


@pytest.fixture(autouse=True)
def _only_in_a_namespace() -> None:
    """Some programs here kill every process that they can reach. Without root that would be all of the user's."""
    if os.getuid() != 0:
        pytest.fail("needs root, so that sandboxes have users and process namespaces of their own", pytrace=False)


@pytest.fixture
async def lab() -> AsyncIterator[Laboratory]:
    """See `Laboratory`."""
    async with laboratory() as made:
        yield made


@pytest.fixture
async def box(lab: Laboratory) -> Box:
    """A running sandbox of its own for each test."""
    return await lab.box()
