"""All executions of this daemon: started once each, followed by any number of readers, kept for a while.

An execution belongs to its sandbox and not to the call that started it. Its output lives in the guest; here there is
never more of it than two chunks for each reader.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from enclaved.agent.handle import Handle, RunOptions, wire_name
from enclaved.agent.jobs import encode_job
from enclaved.agent.link import GuestLink
from enclaved.agent.sender import Nobody
from enclaved.core.bookkeeping import Bookkeeping
from enclaved.core.calls import Calls, Decided
from enclaved.core.counting import Counting
from enclaved.core.execution import BY_PIDS_LIMIT, Execution
from enclaved.core.execution_rows import ExecutionRow, ExecutionStore, ExecutionText, NoStore, options_of
from enclaved.core.following import RUN_OUTPUT_BYTES
from enclaved.core.new_row import new_row, number_at
from enclaved.core.overdue import Overdue
from enclaved.core.pages import number_after
from enclaved.core.policy import check_execution_id
from enclaved.core.quotas import Quotas
from enclaved.core.record import SandboxRecord
from enclaved.core.retention import RECORDS_MOST, EndedExecutions
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.tombstones import Tombstones
from enclaved.core.verdicts import conclude, failed, lost
from enclaved.errors import (
    EnclaveError,
    ExecutionNotFound,
    InvalidRequest,
    LimitReached,
    SandboxLost,
)
from enclaved.metrics import Metrics
from enclaved.model import (
    ExecutionInfo,
    ExecutionPage,
    Finished,
    Job,
    Phases,
    RunResult,
    ToolCall,
    Verdict,
)
from enclaved.runtime.base import Counters, Runtime
from enclaved.tools.registry import ToolRegistry

__all__ = ["RUN_OUTPUT_BYTES", "Execution", "Executions"]

log = logging.getLogger(__name__)

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
WAIT_DEFAULT_S: Final = 60.0
WAIT_MAX_S: Final = 3600.0
_LOST_JOB = (
    "its guest does not know it: the daemon ended before the guest had the job, or the guest has no record of it any "
    "more; whether it ran is not known"
)


class Executions:
    """Starts executions, finds them by id, and says how they ended."""

    def __init__(
        self,
        *,
        sandboxes: Sandboxes,
        tools: ToolRegistry,
        runtime: Runtime,
        metrics: Metrics,
        most: int,
        quotas: Quotas | None = None,
        store: ExecutionStore | None = None,
    ) -> None:
        self._sandboxes, self._runtime, self._metrics = sandboxes, runtime, metrics
        self.most = most
        """Executions at once in one sandbox."""
        self._books, self._calls = Bookkeeping(store or NoStore()), Calls(tools, quotas)
        self._by_id: dict[str, Execution] = {}
        self._running: dict[SandboxRecord, dict[str, Execution]] = {}
        self._number = 0
        self._counting = Counting(runtime, self._running)
        self._overdue = Overdue(self._running, sandboxes.lose)
        self._ended = EndedExecutions(self._forget)
        self._tombstones = Tombstones(self._books.forget)

    def admit(self, call: ToolCall, record: SandboxRecord) -> Decided:
        """Decides all of a call that is about to start, and counts it. Raises as `check`, and `LimitReached`."""
        return self._calls.admit(call, record)

    async def run(self, call: ToolCall, admitted: Decided | None = None) -> RunResult:
        """Runs a tool and gathers its result; of a detached one only says that it runs. Raises what `open` raises."""
        execution = await self.open(call, whole=not call.detach, admitted=admitted)
        if not call.detach:
            return await execution.collect()
        execution.let_go()
        await execution.confirm()
        return RunResult(execution.id, b"", b"", (), None)

    async def open(self, call: ToolCall, *, whole: bool = False, admitted: Decided | None = None) -> Execution:
        """Starts a tool, or finds the execution that has this id already.

        ``whole``: for whoever calls `Execution.collect` at once, and so has no use for a part of the output.
        ``admitted``: what `admit` decided.

        Raises `InvalidRequest`, `PolicyDenied`, `SandboxNotFound`, `ToolNotFound`, `WrongState`, `LimitReached`,
        `GuestUnavailable`, `NoSpace`. Nothing is waited for between the look for the id and its entry, so that the same
        id is never started twice.
        """
        if call.execution_id:
            check_execution_id(call.execution_id)
            known = self._by_id.get(call.execution_id) or self._again(call.execution_id)
            if known is not None:
                if known.record.id != call.sandbox_id:
                    raise InvalidRequest.of(
                        "execution_id", "belongs to an execution in another sandbox; choose another"
                    )
                return known
        record = self._sandboxes.record(call.sandbox_id)
        if record.sleeps_lightly:
            await self._sandboxes.resume(record.id)
            return await self.open(call)
        record.running_link()
        decided = admitted or self._calls.admit(call, record)
        return self._start(record, decided.tool, decided.job, decided.options, call, whole=whole)

    def _again(self, execution_id: str) -> Execution | None:
        """Makes a record of one that ended long ago, with its end and without its output, since somebody asks."""
        tombstone = self._tombstones.find(execution_id)
        if tombstone is None:
            return None
        self._tombstones.take(tombstone)
        return self._adopt_ended(tombstone.record, tombstone.row, tombstone.finished, None)

    def check(self, call: ToolCall, record: SandboxRecord) -> None:
        """Refuses a call that makes no sense in this sandbox, without starting it.

        Raises `InvalidRequest`, `ToolNotFound`, `PolicyDenied`.
        """
        self._calls.decide(call, record)

    def start(self, record: SandboxRecord, tool: str, job: Job, options: RunOptions) -> Execution:
        """Starts a job of the daemon's own. It is not listed, and it does not outlive the daemon."""
        return self._start(record, tool, job, options, None)

    def _start(
        self,
        record: SandboxRecord,
        tool: str,
        job: Job,
        options: RunOptions,
        call: ToolCall | None,
        *,
        whole: bool = False,
    ) -> Execution:
        if record.active_executions >= self.most:
            text = f"sandbox {record.id!r} runs {self.most} executions already, its limit; wait for some to end"
            raise LimitReached(f"sandbox/{record.id}", "executions_per_sandbox_max", text)
        link = record.running_link()
        link.check_ready()
        wire = encode_job(job, record.env)
        number = self._next_number()
        self._counting.know(record)
        running = self._running.setdefault(record, {})
        row = new_row(record, number, tool, wire.context, options, call, alone=not running)
        if call is not None:
            self._books.save(row)
        try:
            handle, reader = link.start(wire_name(row.id, number), wire, options, whole=whole)
        except EnclaveError:
            self._books.forget(row.id)
            raise
        execution = Execution(
            record,
            row,
            number,
            handle,
            reader,
            runtime=self._runtime,
            books=self._books,
            metrics=self._metrics,
            listed=call is not None,
        )
        self._counting.begins(execution, running.values())
        record.executions_started += 1
        self._metrics.executions.started()
        self._enter(execution)
        return execution

    def _next_number(self) -> int:
        """A number for each execution, in order: the time in microseconds, or one more if the clock did not move."""
        self._number = max(self._number + 1, number_at(datetime.now(UTC)))
        return self._number

    def _enter(self, execution: Execution) -> None:
        """Knows an execution from now on."""
        self._running.setdefault(execution.record, {})[execution.id] = execution
        self._by_id[execution.id] = execution
        execution.record.active_executions += 1
        execution.record.touch()
        self._overdue.watch(execution)
        execution.handle.finished.add_done_callback(lambda report: self._on_end(execution, report))

    def take_up(
        self, record: SandboxRecord, texts: Sequence[ExecutionText], read: Callable[[ExecutionText], ExecutionRow]
    ) -> None:
        """Takes up all executions of a sandbox that an earlier daemon has written down, oldest first; see `adopt`.

        Of those that ended long ago only the text is kept. Raises what ``read`` raises.
        """
        ended = [text for text in texts if text.finished is not None]
        old = {text.id for text in ended[: max(0, len(ended) - RECORDS_MOST)]}
        for text in texts:
            if text.id not in old:
                self.adopt(record, read(text))
            elif not text.chosen or not self._tombstones.restore(record, text):
                self._books.forget(text.id)

    def adopt(self, record: SandboxRecord, row: ExecutionRow) -> Execution:
        """Takes up an execution that an earlier daemon has written down, before or after its guest came back.

        ``record`` has its link, if its guest may come back. One that ran goes on, with its grace for clients begun
        anew; it is never sent again: what the guest does not know ends with `INTERNAL_ERROR`. One that had ended is
        kept as long as others.
        """
        if row.finished is not None:
            return self._adopt_ended(record, row, row.finished, record.link)
        execution = self._adopted(record, row, record.link)
        if row.oom_kills_before is not None and row.pids_limit_hits_before is not None:
            execution.before = Counters(row.oom_kills_before, row.pids_limit_hits_before)
            execution.alone_since = execution.before if row.alone else None
        self._metrics.executions.adopted()
        self._enter(execution)
        self._counting.goes_on(execution)
        execution.killed_at_pids_limit = row.cancelled_by == BY_PIDS_LIMIT
        if row.cancelled_by:
            execution.handle.cancel()  # it may not have reached the guest
        execution.expect_client()
        return execution

    def _adopt_ended(
        self, record: SandboxRecord, row: ExecutionRow, finished: Finished, link: GuestLink | None
    ) -> Execution:
        """Makes a record of one that has ended. ``link=None``: nothing is left of its output."""
        execution = self._adopted(record, replace(row, finished=finished), link)
        execution.ended.set_result(finished)
        self._by_id[execution.id] = execution
        self._ended.keep(execution)
        return execution

    def _adopted(self, record: SandboxRecord, row: ExecutionRow, link: GuestLink | None) -> Execution:
        number = number_at(row.created_at)
        self._number = max(self._number, number)
        name, options = wire_name(row.id, number), options_of(row)
        if link is not None:
            handle = link.adopt(name, options)
        else:
            handle = Handle(Nobody(record.id), name, None, options)
            lost = SandboxLost(record.id, record.state_reason or "it was stopped")
            handle.fail(lost if row.finished is None else ExecutionNotFound(row.id))
        return Execution(
            record, row, number, handle, None, runtime=self._runtime, books=self._books, metrics=self._metrics
        )

    # -- looking

    def knows(self, execution_id: str) -> bool:
        """Whether the id is that of an execution that runs, or that ended and is remembered."""
        return execution_id in self._by_id or self._tombstones.find(execution_id) is not None

    def get(self, execution_id: str, sandbox_id: str = "") -> Execution:
        """Finds an execution that runs or ended not long ago. Raises `ExecutionNotFound`."""
        execution = self._by_id.get(execution_id)
        if execution is None or (sandbox_id and execution.record.id != sandbox_id):
            raise ExecutionNotFound(execution_id[:64])
        return execution

    def list(
        self, *, sandbox_id: str = "", running: bool | None = None, page_size: int = 0, page_token: str = ""
    ) -> ExecutionPage:
        """Lists executions that run or ended not long ago, oldest first; ``running`` says which (``None``: all).

        A page goes on after the last one of the page before, whatever began or went meanwhile. ``page_size`` 0 means
        100. Raises `SandboxNotFound`, and `InvalidRequest` for a bad size or token.
        """
        if not 0 <= page_size <= PAGE_SIZE_MAX:
            raise InvalidRequest.of("page_size", f"must be from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
        if sandbox_id:
            self._sandboxes.record(sandbox_id)
        query = zlib.crc32(repr((sandbox_id, running)).encode())
        after = number_after(page_token, query)
        found = sorted(
            (
                execution
                for execution in self._by_id.values()
                if execution.number > after
                and execution.listed
                and (not sandbox_id or execution.record.id == sandbox_id)
                and (running is None or running is not execution.ended.done())
            ),
            key=lambda execution: execution.number,
        )
        page = found[: page_size or PAGE_SIZE_DEFAULT]
        token = f"{page[-1].number}-{query:x}" if len(found) > len(page) else ""
        return ExecutionPage(tuple(execution.info() for execution in page), token)

    async def wait(self, execution_id: str, sandbox_id: str = "", wait_s: float = WAIT_DEFAULT_S) -> ExecutionInfo:
        """Waits for the end of an execution, at most ``wait_s``, and says what is known then.

        Who waits does not count as attached. Raises `InvalidRequest`, `ExecutionNotFound`.
        """
        if not math.isfinite(wait_s) or not 0 <= wait_s <= WAIT_MAX_S:
            raise InvalidRequest.of("wait_s", f"must be from 0 to {WAIT_MAX_S:g}")
        execution = self.get(execution_id, sandbox_id)
        await asyncio.wait((execution.ended,), timeout=wait_s)
        if execution.ended.done():
            execution.ended.result()  # raises what kept it from running
        return execution.info()

    @property
    def active(self) -> int:
        """Executions that run or wait now."""
        return sum(len(running) for running in self._running.values())

    def settle(self) -> None:
        """Writes down at once what is still to be written of executions that have ended."""
        self._books.settle()

    # -- the end

    def _on_end(self, execution: Execution, report: asyncio.Future[Mapping[str, Any]]) -> None:
        """Takes in the guest's report, or the news that there will be none."""
        record = execution.record
        record.active_executions -= 1
        record.touch()
        running = self._running.get(record, {})
        running.pop(execution.id, None)
        self._overdue.ended(execution)
        evidence = self._counting.ends(execution, running.values())
        if not running:
            self._running.pop(record, None)
        error = report.exception()
        if error is None:
            execution.context_reset = report.result().get("fresh_context") is True
            finished = conclude(report.result(), evidence)
            execution.let_go()
        elif isinstance(error, SandboxLost):
            finished = lost(str(error), execution.timeout_s)
        elif isinstance(error, ExecutionNotFound):
            why = _LOST_JOB if execution.handle.adopted else "its guest does not know it any more"
            finished = failed(why, execution.timeout_s)
        elif execution.confirmed or execution.handle.adopted:
            finished = failed(f"it could not be started: {error}", execution.timeout_s)
        else:
            execution.ended.set_exception(error)
            execution.ended.exception()
            self._forget(execution)
            self._metrics.executions.finished(execution.tool, Verdict.INTERNAL_ERROR, Phases())
            log.warning("execution refused", extra={"execution_id": execution.id, "reason": str(error)})
            return
        self._finish(execution, finished)

    def _finish(self, execution: Execution, finished: Finished) -> None:
        execution.finish(finished)
        # Whoever waits for the end goes first: counting would hold up its answer.
        asyncio.get_running_loop().call_soon(execution.note_end, finished, context=contextvars.Context())
        log.debug(
            "execution finished",
            extra={
                "sandbox_id": execution.record.id,
                "execution_id": execution.id,
                "tool": execution.tool,
                "verdict": finished.verdict.value,
            },
        )
        self._ended.keep(execution)

    def _forget(self, execution: Execution) -> None:
        """Forgets an execution that nobody can ask for any more."""
        if self._by_id.get(execution.id) is execution:
            del self._by_id[execution.id]
        finished, row = execution.finished, execution.row
        is_buried = row.chosen and finished is not None and self._tombstones.bury(execution.record, row, finished)
        execution.forget(keep_row=is_buried)
