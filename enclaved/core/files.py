"""Files of a sandbox, moved by a process in it that has the rights of user code and no others."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enclaved.agent.handle import RunOptions
from enclaved.core.executions import Execution, Executions
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import (
    EnclaveError,
    FieldViolation,
    InvalidRequest,
    NoSpace,
    PathNotFound,
    PathUnusable,
    SandboxLost,
)
from enclaved.model import STDOUT, Event, FileJob, FileOperation, Finished, Output, Verdict

PATH_BYTES_MAX = 4096
MODE_MAX = 0o777
TOOL = "files"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Files:
    """Streams files in and out of running sandboxes."""

    def __init__(self, sandboxes: Sandboxes, executions: Executions) -> None:
        self._sandboxes, self._executions = sandboxes, executions

    @asynccontextmanager
    async def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Reads a regular file from ``offset``, at most ``length`` bytes (0: to the end).

        Raises `InvalidRequest`, `SandboxNotFound`, `WrongState`; while reading `PathNotFound`, `PathUnusable`,
        `SandboxLost`.
        """
        if offset < 0 or length < 0:
            raise InvalidRequest.of("offset" if offset < 0 else "length", "must not be negative")
        record = await self._sandboxes.awake(sandbox_id)
        job = FileJob(FileOperation.READ, _checked(path), offset=offset, length=length or None)
        execution = self._start(record, job, stdin=False)
        try:
            async with execution.attach() as events:
                yield _contents(events, record, path)
        finally:
            execution.cancel("the reader of the file")

    async def write(
        self,
        sandbox_id: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int = 0o644,
        create_parents: bool = False,
    ) -> int:
        """Writes a regular file and returns its size. It appears complete or not at all.

        Raises what `read` raises, and `NoSpace`; an exception of ``chunks`` ends the write and passes through.
        """
        if not 0 <= mode <= MODE_MAX:
            raise InvalidRequest.of("open.mode", f"must be permission bits from 0 to {MODE_MAX:#o}")
        record = await self._sandboxes.awake(sandbox_id)
        job = FileJob(FileOperation.WRITE, _checked(path), mode=mode or 0o644, create_parents=create_parents)
        execution = self._start(record, job, stdin=True)
        size = 0
        try:
            async for chunk in chunks:
                await execution.write_stdin(chunk)
                size += len(chunk)
                if execution.handle.finished.done():
                    break
            else:
                await execution.end_input()
            async with execution.attach() as events:
                async for event in events:
                    if isinstance(event, Finished):
                        _check(event, record, path)
        finally:
            execution.cancel("the writer of the file")
        return size

    def _start(self, record: SandboxRecord, job: FileJob, *, stdin: bool) -> Execution:
        return self._executions.start(record, TOOL, job, RunOptions(record.spec.timeout_max_s, stdin=stdin))


async def _contents(events: AsyncIterator[Event], record: SandboxRecord, path: str) -> AsyncIterator[bytes]:
    async for event in events:
        if isinstance(event, Output) and event.channel == STDOUT:
            yield event.data
        elif isinstance(event, Finished):
            _check(event, record, path)


def _checked(path: str) -> str:
    problem = ""
    if not path.strip():
        problem = "must not be empty"
    elif "\0" in path:
        problem = "must not contain NUL"
    elif len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX:
        problem = f"must not be longer than {PATH_BYTES_MAX} bytes"
    if problem:
        raise InvalidRequest(FieldViolation("path", problem))
    return path


def _check(finished: Finished, record: SandboxRecord, path: str) -> None:
    """Raises what the end of a file job means."""
    error = failure(finished, record.id, path)
    if error is not None:
        raise error


def failure(finished: Finished, sandbox_id: str, path: str) -> EnclaveError | None:
    """The error that the end of a file job means; ``None`` if it did its work."""
    if finished.verdict is Verdict.EXITED and finished.exit_code == 0:
        return None
    if finished.verdict is Verdict.SANDBOX_LOST:
        return SandboxLost(sandbox_id, finished.message)
    claim = finished.exception
    if finished.verdict is not Verdict.EXCEPTION or claim is None:
        return PathUnusable(path, f"the process that handled the file ended early: {finished.message}")
    if claim.type == "FileNotFoundError":
        return PathNotFound(path)
    if claim.type == "PathRefused" and claim.errno == errno.EXDEV:
        return InvalidRequest.of("path", claim.message)
    if claim.errno in _FULL:
        return NoSpace(path, f"{path!r}: {claim.message}; the sandbox's file system is full")
    return PathUnusable(path, claim.message)
