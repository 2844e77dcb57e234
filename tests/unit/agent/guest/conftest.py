"""A guest that is not served, and processes that end when a test says so."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import pytest

from enclaved.agent.guest.guest import Guest
from enclaved.agent.guest.loader import Bundle


class Deaths:
    """Processes that ``wait4`` tells of: none of them is this test's."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def wait4(self, pid: int, options: int) -> tuple[int, int, resource.struct_rusage]:
        assert (pid, options) == (-1, os.WNOHANG)
        return (self.pids.pop(0) if self.pids else 0), 0, resource.getrusage(resource.RUSAGE_SELF)


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> Deaths:
    """See `Deaths`."""
    made = Deaths()
    monkeypatch.setattr(os, "wait4", made.wait4)
    return made


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest that is not served; nothing is started and nobody is connected."""
    settings = {"uid": -1, "working_dir": "/", "daemon_absence_s": 0, "scratch_dirs": [], "owns_mounts": False}
    made = Guest("--child", "/nonexistent", settings, Bundle("/nonexistent", -1, 0, {}))
    with contextlib.closing(made.loop.poll):
        yield made
