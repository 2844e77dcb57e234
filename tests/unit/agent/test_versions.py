"""What guests of the version before are asked for."""

from __future__ import annotations

import pytest

from enclaved.agent.guest.limits import OLDEST_VERSION, PROTOCOL_VERSION
from enclaved.agent.versions import OLDEST_GUEST, needed_for_frame, needed_for_job
from enclaved.model import CommandJob, FileJob, FileOperation, PythonJob


def test_one_version_back_is_spoken_on_both_sides():
    assert OLDEST_GUEST == PROTOCOL_VERSION - 1
    assert OLDEST_VERSION == PROTOCOL_VERSION - 1


@pytest.mark.parametrize(("kind", "version"), [("run", 0), ("ping", 0), ("expire", 2), ("pause", 2), ("resume", 2)])
def test_a_frame_needs_the_version_that_brought_it(kind, version):
    assert needed_for_frame(kind) == version


@pytest.mark.parametrize(
    ("job", "version"),
    [
        (PythonJob("1"), 0),
        (CommandJob(("ls",)), 0),
        (FileJob(FileOperation.READ, "a"), 0),
        (FileJob(FileOperation.WRITE, "a", upload_id="u"), 0),
        (FileJob(FileOperation.WRITE, "a", upload_id="u", offset=7), 2),
        (FileJob(FileOperation.STAT, "a"), 2),
        (FileJob(FileOperation.WATCH, "a"), 2),
    ],
)
def test_a_job_needs_the_version_that_can_do_it(job, version):
    assert needed_for_job(job) == version
