"""Jobs that do something to files: each within its time, counted, and with nothing left of those nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from enclaved.agent.handle import RunOptions
from enclaved.agent.reader import CREDIT_BYTES as READER_BYTES
from enclaved.core.execution import Execution
from enclaved.core.executions import Executions
from enclaved.core.file_failures import check
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import GuestUnavailable, NoSpace, PathUnusable
from enclaved.metrics import Metrics
from enclaved.model import STDOUT, Event, FileJob, FileOperation, Finished, Output, SandboxState

log = logging.getLogger(__name__)

TOOL: Final = "files"
QUICK_S: Final = 60.0
"""How long a job may take that looks at one path, or searches."""
STOP_GRACE_S: Final = 5.0
"""How long a job that nobody waits for may remove what it has half made."""
CREDIT_BYTES: Final = 512 * 1024
"""How much of a file or an archive waits for its reader in the daemon, so that the two need not take turns."""
_GUEST_MARGIN_S = 2 * STOP_GRACE_S
_ANSWER_BYTES_MAX = 64 * 1024
_QUICK = (
    FileOperation.STAT,
    FileOperation.MAKE_DIRECTORY,
    FileOperation.SEARCH,
    FileOperation.FORGET_UPLOAD,
)
_LOOKING = (
    FileOperation.READ,
    FileOperation.STAT,
    FileOperation.SCAN,
    FileOperation.SEARCH,
    FileOperation.WATCH,
    FileOperation.READ_ARCHIVE,
)
"""Jobs that make nothing, so that they can be killed at any moment."""
_CONTENT = (FileOperation.READ, FileOperation.READ_ARCHIVE)
_NAMES: Final[Mapping[FileOperation, str]] = MappingProxyType(
    {FileOperation.SCAN: "list", FileOperation.DELETE: "remove"}
)
_HINTS: Final[Mapping[FileOperation, str]] = MappingProxyType(
    {
        FileOperation.SEARCH: "look in fewer files, with a simpler pattern or with `literal`",
        FileOperation.WATCH: "begin another watch",
    }
)


@dataclass(slots=True)
class Job:
    """A job that runs, and what has been moved for it."""

    record: SandboxRecord
    execution: Execution
    bytes_in: int = 0
    bytes_out: int = 0


class FileJobs:
    """Runs jobs in sandboxes.

    Raises `SandboxNotFound`, `WrongState` at once; `PathNotFound`, `PathUnusable`, `NoSpace`, `SandboxLost` and what
    else an operation may come to while it works. Whoever leaves early leaves nothing behind: no process, and no part of
    what was to be made.
    """

    def __init__(self, sandboxes: Sandboxes, executions: Executions, metrics: Metrics) -> None:
        self._sandboxes, self._executions, self._metrics = sandboxes, executions, metrics

    async def do(self, sandbox_id: str, job: FileJob) -> None:
        """Runs a job that says nothing."""
        async with self.output(sandbox_id, job) as chunks:
            async for _ in chunks:
                pass

    @asynccontextmanager
    async def output(self, sandbox_id: str, job: FileJob) -> AsyncIterator[AsyncIterator[bytes]]:
        """Runs a job and lends what it writes."""
        async with (
            self._running(sandbox_id, job, stdin=False) as running,
            running.execution.attach() as events,
            aclosing(_contents(events, running, job)) as chunks,
        ):
            yield chunks

    async def input(self, sandbox_id: str, job: FileJob, chunks: AsyncIterator[bytes]) -> tuple[int, bytes]:
        """Sends ``chunks`` to a job; returns how many bytes that were, and the job's answer."""
        answer = bytearray()
        async with self._running(sandbox_id, job, stdin=True) as running:
            execution = running.execution
            async for chunk in chunks:
                await execution.write_stdin(chunk)
                running.bytes_in += len(chunk)
                if execution.handle.finished.done():
                    break
            else:
                await execution.end_input()
            async with execution.attach() as events, aclosing(_contents(events, running, job)) as output:
                async for data in output:
                    answer += data[: _ANSWER_BYTES_MAX - len(answer)]
        return running.bytes_in, bytes(answer)

    @asynccontextmanager
    async def _running(self, sandbox_id: str, job: FileJob, *, stdin: bool) -> AsyncIterator[Job]:
        """Runs a job for as long as the block, and counts what became of it."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        running: Job | None = None
        failure: BaseException | None = None
        try:
            record = await self._sandboxes.awake(sandbox_id)
            longest_s = record.spec.timeout_max_s
            limit_s = min(QUICK_S, longest_s) if job.operation in _QUICK else longest_s
            credit = CREDIT_BYTES if job.operation in _CONTENT else READER_BYTES
            options = RunOptions(limit_s + _GUEST_MARGIN_S, stdin=stdin, credit_bytes=credit)
            execution = self._executions.start(record, TOOL, job, options)
            running = Job(record, execution)
            limit = asyncio.timeout(limit_s)
            try:
                async with limit:
                    yield running
            except TimeoutError:
                if not limit.expired():
                    raise
                raise PathUnusable(job.path, _too_long(job, limit_s)) from None
            finally:
                self._end(running, job)
        except BaseException as error:
            failure = error
            raise
        finally:
            moved = (running.bytes_in, running.bytes_out) if running is not None else (0, 0)
            name = _NAMES.get(job.operation, job.operation.value)
            self._metrics.files.operation(name, loop.time() - begun, *moved, error=failure)
            if isinstance(failure, NoSpace):
                log.info("sandbox full", extra={"sandbox_id": sandbox_id, "operation": name})

    def _end(self, running: Job, job: FileJob) -> None:
        """Ends a job that nobody waits for any more. One that makes something is asked first, to clean up."""
        if running.execution.ended.done():
            return
        if job.operation not in _LOOKING:
            try:
                running.execution.handle.signal(signal.SIGTERM)
            except GuestUnavailable:  # it does not read; it hears of the end when it does
                pass
            else:
                self._kill_later(running)
                return
        running.execution.cancel("the client of the file service")

    def _kill_later(self, running: Job) -> None:
        def kill() -> None:
            if running.record.state is SandboxState.PAUSED and not running.execution.ended.done():
                self._kill_later(running)  # it has had no time yet
            else:
                running.execution.cancel("the client of the file service")

        asyncio.get_running_loop().call_later(STOP_GRACE_S, kill, context=contextvars.Context())


async def _contents(events: AsyncIterator[Event], running: Job, job: FileJob) -> AsyncGenerator[bytes, None]:
    async for event in events:
        if isinstance(event, Output) and event.channel == STDOUT:
            if job.operation in _CONTENT:
                running.bytes_out += len(event.data)
            yield event.data
        elif isinstance(event, Finished):
            check(event, running.record.id, job)


def _too_long(job: FileJob, limit_s: float) -> str:
    hint = _HINTS.get(job.operation, "move or change less at once")
    return f"it took longer than {limit_s:g} s, the longest that is granted; {hint}"
