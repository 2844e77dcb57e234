"""Every test in this folder needs Docker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave._local import process_daemons

from tests import leaks

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end of all tests nothing of them is on the machine."""
    with leaks.nothing_left(tmp_path_factory.getbasetemp()):
        yield
        process_daemons()._embedded.stop()  # it would end with this process, just after that is looked at
