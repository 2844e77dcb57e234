"""Ends the process that daemons are forked from, which would otherwise stay until the end of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker, util

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_process_to_fork_from_is_left() -> Iterator[None]:
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    util._run_finalizers()  # which remove the directory of the sockets
