"""What all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import leaks


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end of all tests nothing of them is on the machine."""
    with leaks.nothing_left(tmp_path_factory.getbasetemp()):
        yield
