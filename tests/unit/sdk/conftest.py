"""A fake daemon at a socket, and an environment in which the SDK finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sdk.fake_daemon import FakeDaemon, served


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A fake daemon that the SDK finds by ``MS_ENCLAVE_ADDRESS``."""
    path = tmp_path / "d.sock"
    monkeypatch.setenv("MS_ENCLAVE_ADDRESS", f"unix:{path}")
    found = FakeDaemon()
    with served(found, path):
        yield found
