"""The SDK at daemons that are killed, with sandboxes in containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.failures.ground import Ground


@pytest.fixture
def ground(default_image: str) -> Iterator[Ground]:
    """A directory, and the certainty that nothing stays."""
    made = Ground()
    try:
        yield made
    finally:
        made.clear()
