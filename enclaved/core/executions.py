"""All executions of this daemon: started once each, followed by any number of readers, kept for a while.

An execution belongs to its sandbox and not to the call that started it. Its output lives in the guest; here there is
never more of it than two chunks for each reader.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.handle import OutputReader, RunOptions
from enclaved.agent.jobs import encode_job
from enclaved.core.policy import check_execution_id, execution_timeout
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.verdicts import Evidence, conclude, lost
from enclaved.errors import (
    ExecutionNotFound,
    InvalidRequest,
    LimitReached,
    SandboxLost,
    ToolNotFound,
)
from enclaved.metrics import Metrics
from enclaved.model import (
    CHANNEL_NAMES,
    STDERR,
    STDOUT,
    Event,
    Finished,
    Job,
    Notice,
    NoticeKind,
    RunResult,
    Started,
    ToolCall,
    Verdict,
)
from enclaved.runtime.base import Runtime
from enclaved.tools.registry import ToolRegistry

log = logging.getLogger(__name__)

RUN_OUTPUT_BYTES = 1024 * 1024
ACKNOWLEDGE_EVERY_BYTES = 256 * 1024
RECORD_KEPT_S = 60.0
RECORDS_PER_SANDBOX = 256
TIMEOUT_MARGIN_S = 15.0


class Execution:
    """One run of one job in one sandbox."""

    def __init__(
        self, owner: Executions, record: SandboxRecord, execution_id: str, tool: str, job: Job, call: RunOptions
    ) -> None:
        self.id, self.tool, self.record = execution_id, tool, record
        self.timeout_s = call.timeout_s
        self.created_at = datetime.now(UTC)
        self.since = asyncio.get_running_loop().time()
        """Monotonic time until which it may have waited in line, as far as is known."""
        self.alone = record.active_executions == 0
        self.cancelled_by = ""
        self.detach_grace_s = 60.0
        self.explicit_acknowledgements = False
        self.ended: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self.context_reset = False
        self._attached = 0
        self._detach: asyncio.TimerHandle | None = None
        self.overdue: asyncio.TimerHandle | None = None
        self.expiry: asyncio.TimerHandle | None = None
        link = record.running_link()
        self._first_reader: OutputReader | None
        wire = encode_job(job, record.env)
        self.context = wire.context
        self.handle, self._first_reader = link.start(execution_id, wire, call)
        self.handle.finished.add_done_callback(lambda report: owner.on_end(self, report))

    @asynccontextmanager
    async def attach(
        self, offsets: Mapping[int, int] | None = None, *, observe: bool = False
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Follows the execution: `Started`, output and notices, exactly one `Finished`.

        Asking for the next event says that the one before was delivered; what was delivered may be released, unless
        the client acknowledges by itself or only observes. Raises `OffsetReleased`, `ExecutionNotFound`.
        """
        self._enter()
        try:
            reader = await self._reader(offsets)
            if offsets and not observe:
                self.handle.acknowledge(offsets)
            events = _events(self, reader, observe)
            try:
                yield events
            finally:
                await events.aclose()
                reader.close()
        finally:
            self._leave()

    async def _reader(self, offsets: Mapping[int, int] | None) -> OutputReader:
        """Takes over the reader that the execution started with, if it can serve; otherwise adds one."""
        reader, self._first_reader = self._first_reader, None
        if reader is not None and offsets and any(offsets.values()):
            reader.close()
            reader = None
        if reader is None:
            reader = self.handle.subscribe(offsets)
        try:
            await reader.wait_subscribed()
        except SandboxLost as error:
            await _expect_lost(self, error)
        except BaseException:
            reader.close()
            raise
        return reader

    def let_go(self) -> None:
        """Stops the reader that nobody came for, so that old output can make room. Who comes later starts anew."""
        if self._first_reader is not None:
            self._first_reader.close()
            self._first_reader = None

    async def collect(self) -> RunResult:
        """Gathers the whole result, or as much as fits into one answer."""
        self._enter()
        try:
            reader = await self._reader({STDOUT: 0, STDERR: 0})
            outputs = {STDOUT: bytearray(), STDERR: bytearray()}
            try:
                complete = await _gather(reader, outputs)
            except SandboxLost as error:
                await _expect_lost(self, error)
                complete = True
            finally:
                reader.close()
            finished = await self.ended if complete else None
        finally:
            self._leave()
        notices = tuple(_notices(self)) if finished is not None else ()
        return RunResult(self.id, bytes(outputs[STDOUT]), bytes(outputs[STDERR]), notices, finished)

    async def write_stdin(self, data: bytes, offset: int | None = None) -> None:
        """Sends input; waits while the program does not read it. A repeated chunk is not delivered twice."""
        if not self.handle.options.stdin:
            raise InvalidRequest.of("stdin", "this execution reads no input; start it with `stdin: true`")
        await self.handle.write_stdin(data, offset)

    async def end_input(self) -> None:
        """Says that no more input comes."""
        self.handle.end_input()

    def acknowledge(self, offsets: Mapping[int, int]) -> None:
        """Releases output that the client has safely received. From now on only this releases."""
        self.explicit_acknowledgements = True
        self.handle.acknowledge(offsets)

    def cancel(self, by: str) -> None:
        """Kills the execution. One that has ended is left as it is."""
        if not self.ended.done():
            self.cancelled_by = self.cancelled_by or by
            self.handle.cancel()

    @property
    def attached(self) -> bool:
        """Whether somebody follows it now."""
        return self._attached > 0

    def _enter(self) -> None:
        self._attached += 1
        if self._detach is not None:
            self._detach.cancel()
            self._detach = None

    def _leave(self) -> None:
        self._attached -= 1
        if self._attached == 0 and not self.ended.done():
            by = "the daemon: no client was attached for the detach grace"
            self._detach = asyncio.get_running_loop().call_later(self.detach_grace_s, self.cancel, by)


async def _expect_lost(execution: Execution, error: SandboxLost) -> None:
    """Raises the error again, unless the verdict carries the news.

    An execution that ended before has another verdict, but what was left of its output went with the sandbox.
    """
    if (await execution.ended).verdict is not Verdict.SANDBOX_LOST:
        raise error


async def _gather(reader: OutputReader, outputs: Mapping[int, bytearray]) -> bool:
    """Takes output until its end (True), or until an answer is full or the program waits (False)."""
    while (chunk := await reader.next(until_full=True)) is not None:
        gathered = outputs[chunk.channel]
        gathered += chunk.data
        if len(gathered) > RUN_OUTPUT_BYTES:
            del gathered[RUN_OUTPUT_BYTES:]
            return False
    return reader.ended


async def _events(execution: Execution, reader: OutputReader, observe: bool) -> AsyncGenerator[Event]:
    offsets = {STDOUT: 0, STDERR: 0, **reader.start_offsets}
    yield Started(execution.id, execution.timeout_s, offsets, execution.created_at)
    waiting_bytes = 0
    try:
        while True:
            releases = not observe and not execution.explicit_acknowledgements
            chunk = await reader.next(until_full=releases)
            if chunk is None and reader.ended:
                break
            if chunk is not None:
                if chunk.offset > offsets[chunk.channel]:
                    yield _gap(chunk.channel, offsets[chunk.channel], chunk.offset)
                offsets[chunk.channel] = chunk.offset + len(chunk.data)
                yield chunk
                waiting_bytes += cost_bytes(chunk.data)
            if releases and (chunk is None or waiting_bytes >= ACKNOWLEDGE_EVERY_BYTES):
                execution.handle.acknowledge(offsets)
                execution.handle.full_at = None  # the guest says it again if that was not enough
                waiting_bytes = 0
    except SandboxLost as error:
        await _expect_lost(execution, error)
    finished = await execution.ended
    for channel, total in finished.bytes_total.items():
        if total > offsets[channel] and reader.ended:
            yield _gap(channel, offsets[channel], total)
    for notice in _notices(execution):
        yield notice
    yield finished


def _gap(channel: int, start: int, end: int) -> Notice:
    text = f"{end - start} bytes of {CHANNEL_NAMES[channel]} were released before this reader came to them"
    return Notice(NoticeKind.GAP, text, channel=channel, offset=start, length_bytes=end - start)


def _notices(execution: Execution) -> list[Notice]:
    if not execution.context_reset:
        return []
    text = "this ran in a fresh interpreter, since the earlier one had died; its variables are gone"
    return [Notice(NoticeKind.CONTEXT_RESET, text)]


def _due(execution: Execution) -> float:
    """Monotonic time until which a guest must have ended an execution, whatever it runs."""
    return max(execution.since, execution.record.paused_at) + execution.timeout_s + TIMEOUT_MARGIN_S


class Executions:
    """Starts executions, finds them by id, and says how they ended."""

    def __init__(
        self, *, sandboxes: Sandboxes, tools: ToolRegistry, runtime: Runtime, metrics: Metrics, most: int
    ) -> None:
        self._sandboxes, self._tools, self._runtime, self._metrics = sandboxes, tools, runtime, metrics
        self.most = most
        """Executions at once in one sandbox."""
        self._by_id: dict[str, Execution] = {}
        self._records: dict[SandboxRecord, deque[Execution]] = {}
        self._running: dict[SandboxRecord, dict[str, Execution]] = {}

    async def run(self, call: ToolCall) -> RunResult:
        """Runs a tool and gathers its result. Raises what `open` raises."""
        execution = await self.open(call)
        return await execution.collect()

    async def open(self, call: ToolCall) -> Execution:
        """Starts a tool, or finds the execution that has this id already.

        Raises `InvalidRequest`, `SandboxNotFound`, `ToolNotFound`, `WrongState`, `LimitReached`.
        """
        if call.execution_id:
            check_execution_id(call.execution_id)
            known = self._by_id.get(call.execution_id)
            if known is not None:
                if known.record.id != call.sandbox_id:
                    raise InvalidRequest.of(
                        "execution_id", "belongs to an execution in another sandbox; choose another"
                    )
                return known
        record = self._sandboxes.record(call.sandbox_id)
        record.running_link()
        tool, job, options = self._decide(call, record)
        execution = self.start(record, tool, job, options, call.execution_id)
        execution.detach_grace_s = call.detach_grace_s
        return execution

    def check(self, call: ToolCall, record: SandboxRecord) -> None:
        """Refuses a call that makes no sense in this sandbox, without starting it.

        Raises `InvalidRequest`, `ToolNotFound`, `PolicyDenied`.
        """
        if call.execution_id:
            check_execution_id(call.execution_id)
        self._decide(call, record)

    def _decide(self, call: ToolCall, record: SandboxRecord) -> tuple[str, Job, RunOptions]:
        tool = self._enabled(call.tool, record)
        options = (record.spec.tools or {}).get(tool, {})
        prepared = self._tools.prepare(call.tool, call.parameters, options)
        timeout_s = execution_timeout(call.timeout_s, prepared.timeout_s, record.spec)
        run = RunOptions(timeout_s, call.output_limit_bytes, call.stdin, call.merge_stderr)
        return prepared.tool_name, prepared.job, run

    def _enabled(self, name: str, record: SandboxRecord) -> str:
        if self._tools.is_internal(name):
            return name
        enabled = record.spec.tools
        try:
            tool = self._tools.canonical(name)
        except ToolNotFound:
            tool = ""
        if not tool or (enabled is not None and tool not in enabled):
            raise ToolNotFound(name[:100], tuple(sorted(enabled if enabled is not None else self._tools.names())))
        return tool

    def start(
        self, record: SandboxRecord, tool: str, job: Job, options: RunOptions, execution_id: str = ""
    ) -> Execution:
        """Starts a job that is already decided."""
        if record.active_executions >= self.most:
            text = f"sandbox {record.id!r} runs {self.most} executions already, its limit; wait for some to end"
            raise LimitReached(f"sandbox/{record.id}", "executions_per_sandbox_max", text)
        execution = Execution(self, record, execution_id or secrets.token_hex(8), tool, job, options)
        running = self._running.setdefault(record, {})
        for other in running.values():
            other.alone = False
        running[execution.id] = execution
        record.active_executions += 1
        record.executions_started += 1
        self._by_id[execution.id] = execution
        self._metrics.execution_started()
        self._watch_timeout(execution)
        return execution

    def get(self, execution_id: str, sandbox_id: str = "") -> Execution:
        """Finds an execution that runs or ended not long ago. Raises `ExecutionNotFound`."""
        execution = self._by_id.get(execution_id)
        if execution is None or (sandbox_id and execution.record.id != sandbox_id):
            raise ExecutionNotFound(execution_id[:64])
        return execution

    @property
    def active(self) -> int:
        """Executions that run or wait now."""
        return sum(len(running) for running in self._running.values())

    # -- the end

    def on_end(self, execution: Execution, report: asyncio.Future[Mapping[str, Any]]) -> None:
        """Takes in the guest's report, or the news that there will be none."""
        record = execution.record
        if execution.overdue is not None:
            execution.overdue.cancel()
        record.active_executions -= 1
        running = self._running.get(record, {})
        running.pop(execution.id, None)
        if execution.context is not None:
            for other in running.values():
                if other.context == execution.context:
                    other.since = asyncio.get_running_loop().time()
        if not running:
            self._running.pop(record, None)
        error = report.exception()
        if error is None:
            execution.context_reset = report.result().get("fresh_context") is True
            finished = conclude(report.result(), self._evidence(execution))
            execution.let_go()
        elif isinstance(error, SandboxLost):
            finished = lost(str(error), execution.timeout_s)
        else:
            execution.ended.set_exception(error)
            execution.ended.exception()
            self._by_id.pop(execution.id, None)
            self._metrics.execution_finished(execution.tool, Verdict.INTERNAL_ERROR, Finished(Verdict.EXITED).phases)
            log.warning("execution refused", extra={"execution_id": execution.id, "reason": str(error)})
            return
        execution.ended.set_result(finished)
        self._metrics.execution_finished(execution.tool, finished.verdict, finished.phases)
        log.debug(
            "execution finished",
            extra={
                "sandbox_id": record.id,
                "execution_id": execution.id,
                "tool": execution.tool,
                "verdict": finished.verdict.value,
            },
        )
        self._keep(execution)

    def _evidence(self, execution: Execution) -> Evidence:
        record = execution.record
        before, record.counted = record.counted, None
        if record.container_id is not None:
            record.counted = self._runtime.counters(record.container_id)
        now = record.counted
        compared = (now, before) if now is not None and before is not None else None
        return Evidence(
            timeout_s=execution.timeout_s,
            oom_kills=compared[0].oom_kills - compared[1].oom_kills if compared else 0,
            pids_limit_hits=compared[0].pids_limit_hits - compared[1].pids_limit_hits if compared else 0,
            alone=execution.alone,
            cancelled_by=execution.cancelled_by,
        )

    def _keep(self, execution: Execution) -> None:
        """Keeps the record for those who come late, for a while and within bounds."""
        kept = self._records.setdefault(execution.record, deque())
        kept.append(execution)
        self._expire_later(execution)
        if len(kept) > RECORDS_PER_SANDBOX:
            oldest = next((other for other in kept if not other.attached), None)
            if oldest is not None:
                self._drop(oldest)

    def _expire_later(self, execution: Execution) -> None:
        loop = asyncio.get_running_loop()
        context = contextvars.Context()
        execution.expiry = loop.call_later(RECORD_KEPT_S, self._expire, execution, context=context)

    def _expire(self, execution: Execution) -> None:
        if execution.attached:
            self._expire_later(execution)  # somebody still reads it
        else:
            self._drop(execution)

    def _drop(self, execution: Execution) -> None:
        if execution.expiry is not None:
            execution.expiry.cancel()
        self._by_id.pop(execution.id, None)
        execution.handle.release()
        kept = self._records.get(execution.record)
        if kept is not None and execution in kept:
            kept.remove(execution)
            if not kept:
                del self._records[execution.record]

    def _watch_timeout(self, execution: Execution) -> None:
        """The guest enforces timeouts. Should it not, the sandbox goes."""
        context = contextvars.Context()
        execution.overdue = asyncio.get_running_loop().call_at(
            _due(execution), self._overdue, execution, context=context
        )

    def _overdue(self, execution: Execution) -> None:
        now = asyncio.get_running_loop().time()
        if self._is_in_line(execution):
            execution.since = now
        if now < _due(execution):
            self._watch_timeout(execution)
        else:
            self._sandboxes.lose(execution.record, "its guest did not end an execution at its timeout")

    def _is_in_line(self, execution: Execution) -> bool:
        """Whether it waits in its context behind others, whose own time comes first."""
        before = itertools.takewhile(lambda other: other is not execution, self._running[execution.record].values())
        return execution.context is not None and any(other.context == execution.context for other in before)
