"""What the end of a file job means."""

from __future__ import annotations

import errno
from typing import Final

from enclaved.errors import (
    EnclaveError,
    InvalidRequest,
    NoSpace,
    PathExists,
    PathNotFound,
    PathUnusable,
    SandboxLost,
    UploadGap,
)
from enclaved.model import ExceptionInfo, FileJob, Finished, Verdict

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FIELDS: Final = {"ArchiveRefused": "archive", "PatternRefused": "pattern"}


def check(finished: Finished, sandbox_id: str, job: FileJob) -> None:
    """Raises what the end of a file job means; nothing if it did its work."""
    error = failure(finished, sandbox_id, job)
    if error is not None:
        raise error


def failure(finished: Finished, sandbox_id: str, job: FileJob) -> EnclaveError | None:
    """The error that the end of a file job means; ``None`` if it did its work."""
    path = job.path
    if finished.verdict is Verdict.EXITED and finished.exit_code == 0:
        return None
    if finished.verdict is Verdict.SANDBOX_LOST:
        return SandboxLost(sandbox_id, finished.message)
    if finished.verdict is Verdict.DISK_LIMIT:
        return NoSpace(path, f"{path!r}: the file would be larger than the sandbox's files may be")
    claim = finished.exception
    if finished.verdict is not Verdict.EXCEPTION or claim is None:
        return PathUnusable(path, f"the process that handled the file ended early: {finished.message}")
    return _claimed(claim, job)


def _claimed(claim: ExceptionInfo, job: FileJob) -> EnclaveError:
    """What a process with the rights of user code says about itself: it may lie, but only to its own caller."""
    path = job.path
    if claim.type == "FileNotFoundError":
        return PathNotFound(path)
    if claim.type == "TargetMissing":
        return PathNotFound(job.target_path.rpartition("/")[0] or job.target_path)
    if claim.type == "FileExistsError":
        return PathExists(job.target_path or path)
    if claim.type == "PathRefused" and claim.errno == errno.EXDEV:
        return InvalidRequest.of("path", claim.message)
    if claim.type in _FIELDS:
        return InvalidRequest.of(_FIELDS[claim.type], claim.message)
    if claim.type == "UploadGap" and claim.message.isascii() and claim.message.isdigit() and len(claim.message) < 19:
        return UploadGap(path, int(claim.message))
    if claim.errno in _FULL:
        return NoSpace(path, f"{path!r} does not fit, the sandbox's file system is full: {claim.message}")
    if claim.type == "MemoryError":
        return PathUnusable(path, "the sandbox has too little memory for this")
    return PathUnusable(path, claim.message)
