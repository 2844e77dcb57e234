"""Daemons that attach to the sandboxes that they make, as where the engine does not see their files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.failures.ground import Ground


@pytest.fixture
def ground(default_image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """See `Ground`. Its daemons attach."""
    monkeypatch.setenv("ENCLAVED_ENGINE_CHANNEL", "attach")
    made = Ground()
    try:
        yield made
    finally:
        made.clear()
