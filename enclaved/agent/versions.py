"""What guests of other versions than this daemon's understand. docs/guest-protocol.md describes the versions.

A guest of the version before is used with what it can. An older one is only followed until its executions have ended.
"""

from __future__ import annotations

from typing import Final

from enclaved.agent.guest.limits import PROTOCOL_VERSION
from enclaved.model import FileJob, FileOperation, Job

OLDEST_GUEST: Final = PROTOCOL_VERSION - 1
"""The oldest version with which a guest is used."""
_ALWAYS: Final = 0
_FRAMES: Final = {"expire": 2, "pause": 2, "resume": 2}
"""The version from which on a guest understands a frame, where not every one does."""
_FILE_OPERATIONS: Final = frozenset(
    {
        FileOperation.READ,
        FileOperation.WRITE,
        FileOperation.DELETE,
        FileOperation.LIST,
        FileOperation.EXISTS,
        FileOperation.WIPE,
    }
)
"""What guests of version 1 can do to files."""


def needed_for_frame(kind: str) -> int:
    """The version from which on a guest understands a frame of this type."""
    return _FRAMES.get(kind, _ALWAYS)


def needed_for_job(job: Job) -> int:
    """The version from which on a guest can do a job."""
    if not isinstance(job, FileJob):
        return _ALWAYS
    goes_on = job.upload_id and job.offset  # one that begins is written by guests of version 1 as any other
    return _ALWAYS if job.operation in _FILE_OPERATIONS and not (goes_on and job.operation == "write") else 2
