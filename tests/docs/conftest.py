"""Where the programs of the pages run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docs.place import Place, a_place


@pytest.fixture
def place() -> Iterator[Place]:
    """An empty directory in which programs run with the installed package and a daemon of their own."""
    with a_place() as made:
        yield made
