"""One execution: who follows it, what is said to it, and how others see it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from enclaved.agent.handle import Handle
from enclaved.agent.reader import OutputReader
from enclaved.core.bookkeeping import Bookkeeping
from enclaved.core.execution_rows import ExecutionRow
from enclaved.core.following import expect_told, follow, gather, sampling
from enclaved.core.possible import Bounds
from enclaved.core.record import SandboxRecord
from enclaved.errors import ExecutionNotFound, GuestUnavailable, InvalidRequest, NoSpace, SandboxLost
from enclaved.metrics import Metrics
from enclaved.model import (
    CHANNEL_NAMES,
    STDERR,
    STDOUT,
    TERMINAL,
    Event,
    ExecutionInfo,
    Finished,
    NoticeKind,
    OnAwaitingInput,
    ResourceUsage,
    RunResult,
    SandboxState,
    Started,
    TerminalSize,
)
from enclaved.runtime.base import Counters, Runtime

log = logging.getLogger(__name__)

STATS_INTERVAL_MIN_S = 0.05
SIGNAL_MAX = 64
CONFIRM_DEADLINE_S = 5.0
BY_GRACE = "the daemon: no client was attached for the detach grace"
BY_AWAITING_INPUT = "the daemon: its program waited for input that nobody sent (on_awaiting_input: kill)"
BY_PIDS_LIMIT = "the daemon: the sandbox reached its limit of processes"


class Execution:
    """One run of one job in one sandbox."""

    def __init__(
        self,
        record: SandboxRecord,
        row: ExecutionRow,
        number: int,
        handle: Handle,
        first_reader: OutputReader | None,
        *,
        runtime: Runtime,
        books: Bookkeeping,
        metrics: Metrics,
        listed: bool = True,
    ) -> None:
        self.id, self.tool, self.record, self.number, self.handle = row.id, row.tool, record, number, handle
        self.timeout_s = row.timeout_s
        self.context = row.context or None
        self.created_at = row.created_at
        self.listed = listed
        """Whether it was started by a caller; others are the daemon's own and not shown."""
        self.since = asyncio.get_running_loop().time()
        """Monotonic time until which it may have waited in line, as far as is known."""
        self.before: Counters | None = None
        """The control group's counters when it started."""
        self._born = self.since - max(0.0, (datetime.now(UTC) - row.created_at).total_seconds())
        self.alone_since: Counters | None = None
        """The counters since when nothing else ran in the sandbox; ``None`` while something does."""
        self.ended: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self.context_reset = False
        self.killed_at_pids_limit = False
        self.confirmed = False
        """Whether a caller was told that it runs, and is not waiting for it."""
        self.overdue: asyncio.TimerHandle | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._row = row
        self._runtime, self._books, self._metrics = runtime, books, metrics
        self._first_reader = first_reader
        self._attached = self._clients = 0  # all who follow it, and those of them who do more than observe
        self._releaser: object | None = None  # who releases output: the last that came and does not observe
        self._detach: asyncio.TimerHandle | None = None
        handle.on_awaiting_input = self._on_awaiting_input

    @asynccontextmanager
    async def attach(
        self,
        offsets: Mapping[int, int] | None = None,
        *,
        observe: bool = False,
        stats_interval_s: float | None = None,
        follower: object | None = None,
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Follows the execution: `Started`, output, samples and notices, exactly one `Finished`.

        Asking for the next event says that the one before was delivered; what was delivered may be released, unless
        the client acknowledges by itself or only observes. Who does not observe takes the place of the one before,
        who observes from then on; ``follower`` is by what `acknowledge` knows it. Samples come every
        ``stats_interval_s`` (``None``: never), and a slow reader misses some. Of output that is not kept any more a
        notice says how much it was. Who only observes does not keep it from its grace.

        Raises `InvalidRequest`, `OffsetReleased`, `ExecutionNotFound`, `GuestUnavailable`.
        """
        follower = follower or object()
        if stats_interval_s is not None and not STATS_INTERVAL_MIN_S <= stats_interval_s < float("inf"):
            raise InvalidRequest.of("stats_interval_s", f"must be at least {STATS_INTERVAL_MIN_S}")
        offsets = self._positions(offsets)
        self._enter(observe=observe)
        try:
            reader = await self._in_place(offsets, None if observe else follower)
            if not observe:
                self.handle.acknowledge(offsets)
            events = follow(self, reader, lambda: self._releaser is follower)
            try:
                with sampling(reader, stats_interval_s):
                    yield events
            finally:
                await events.aclose()
                reader.close()
        finally:
            self._leave(observe=observe)

    def _positions(self, offsets: Mapping[int, int] | None) -> Mapping[int, int]:
        """The offsets in channels that this execution has. Raises `InvalidRequest` for others, but for their start."""
        for channel, offset in (offsets or {}).items():
            if channel not in self.handle.options.channels and offset:
                raise InvalidRequest.of("offsets", f"this execution has no channel {CHANNEL_NAMES[channel]}")
        return {
            channel: offset for channel, offset in (offsets or {}).items() if channel in self.handle.options.channels
        }

    async def _in_place(self, offsets: Mapping[int, int], follower: object | None) -> OutputReader:
        """Adds a reader, for a follower who takes the place of the one before if that works; ``None``: for none."""
        before = self._releaser
        if follower is not None:
            self._releaser = follower
        try:
            return await self._reader(offsets)
        except BaseException:
            if self._releaser is follower:
                self._releaser = before
            raise

    async def _reader(self, offsets: Mapping[int, int]) -> OutputReader:
        """Takes over the reader that the execution started with, if it can serve; otherwise adds one."""
        reader, self._first_reader = self._first_reader, None
        if reader is not None and any(offsets.values()):
            reader.close()
            reader = None
        if reader is None:
            reader = self.handle.subscribe(offsets)
        try:
            await reader.wait_subscribed()
        except (SandboxLost, ExecutionNotFound) as error:
            await expect_told(self, error)
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
            reader = await self._reader(dict.fromkeys(self.handle.options.channels, 0))
            try:
                outputs, notices, finished = await gather(self, reader)
            finally:
                reader.close()
        finally:
            self._leave()
        stdout = outputs.get(STDOUT) or outputs.get(TERMINAL, b"")
        return RunResult(self.id, stdout, outputs.get(STDERR, b""), notices, finished)

    async def confirm(self) -> None:
        """Waits until the guest has taken it up. Raises what makes the guest refuse it.

        What keeps it from running later is told by its verdict, since nobody may be there to hear of it.
        """
        if self.finished is not None:
            return
        try:
            await self.record.running_link().ping(CONFIRM_DEADLINE_S)
        except GuestUnavailable as error:  # it is told again when the guest is back
            log.warning("not confirmed", extra={"execution_id": self.id, "reason": str(error)})
        if self.handle.finished.done() and (refusal := self.handle.finished.exception()) is not None:
            raise refusal
        self.confirmed = True

    # -- what is said to it

    async def write_stdin(self, data: bytes, offset: int | None = None) -> None:
        """Sends input; waits while the program does not read it. A repeated chunk is not delivered twice."""
        if not self.handle.options.has_input:
            raise InvalidRequest.of("stdin", "this execution reads no input; start it with `stdin: true`")
        await self.handle.input.write(data, offset)

    async def end_input(self) -> None:
        """Says that no more input comes."""
        await self.handle.end_input()

    def signal(self, number: int, *, leader_only: bool = False) -> None:
        """Sends a signal to the whole tree, or to its leader. One that has ended is left as it is."""
        if not 1 <= number <= SIGNAL_MAX:
            raise InvalidRequest.of("signal.signal", f"must be from 1 to {SIGNAL_MAX}, is {number}")
        if not self.ended.done():
            self.handle.signal(number, leader_only=leader_only)
            self._metrics.executions.signalled()

    def resize(self, size: TerminalSize) -> None:
        """Tells its terminal that it has a new size. Raises `InvalidRequest` if it has none."""
        if self.handle.options.terminal is None:
            raise InvalidRequest.of("resize", "this execution has no terminal; start it with `terminal`")
        if not self.ended.done():
            self.handle.resize(size)

    async def acknowledge(self, offsets: Mapping[int, int], follower: object | None = None) -> None:
        """Releases output that the client has safely received. From now on only this releases.

        Of a ``follower`` whose place another one took it changes nothing. Raises `InvalidRequest` for what nobody can
        have received.
        """
        offsets = self._positions(offsets)
        if not await self.handle.wait_shown(offsets):
            channel, offset = next(each for each in offsets.items() if each[1] > self.handle.shown.get(each[0], 0))
            text = f"{offset} of {CHANNEL_NAMES[channel]} is beyond what was sent ({self.handle.shown.get(channel, 0)})"
            raise InvalidRequest.of("acknowledge.offsets", text)
        if follower is not None and self._releaser is not follower:
            return
        if not self.explicit_acknowledgements:
            self._change(replace(self._row, explicit_acknowledgements=True))
        self.handle.acknowledge(offsets)

    def cancel(self, by: str) -> None:
        """Kills the execution. One that has ended is left as it is."""
        if not self.ended.done():
            if not self.cancelled_by:
                self._change(replace(self._row, cancelled_by=by))
            self.handle.cancel()

    def cancel_at_pids_limit(self) -> None:
        """Kills it since its sandbox met the limit of processes and policy wants that."""
        if not self.ended.done() and not self.cancelled_by:
            self.killed_at_pids_limit = True
            self.cancel(BY_PIDS_LIMIT)

    def accompanied(self) -> None:
        """Something else runs in the sandbox from now on."""
        self.alone_since = None
        if self._row.alone:
            self._change(replace(self._row, alone=False))

    def finish(self, finished: Finished) -> None:
        """It has ended like this."""
        if self._detach is not None:
            self._detach.cancel()
        self.ended.set_result(finished)
        if self.listed:
            self._books.finish(self.id, finished)

    def note_end(self, finished: Finished) -> None:
        """Counts its end."""
        self._metrics.executions.finished(
            self.tool, finished.verdict, finished.phases, finished.usage, finished.bytes_total
        )
        if self.context_reset:
            self.noticed(NoticeKind.CONTEXT_RESET)

    def forget(self, *, keep_row: bool = False) -> None:
        """Nobody can ask for it any more. ``keep_row``: what is written down of it stays, so that it is known."""
        self.handle.release()
        if self.listed and not keep_row:
            self._books.forget(self.id)

    def _change(self, row: ExecutionRow) -> None:
        """Notes what the next daemon must know. A full disk does not keep anything from happening."""
        self._row = row
        if self.ended.done() or not self.listed:
            return
        try:
            self._books.save(row)
        except NoSpace as error:
            log.warning("not written down", extra={"execution_id": self.id, "reason": str(error)})

    def _on_awaiting_input(self) -> None:
        self.noticed(NoticeKind.AWAITING_INPUT)
        if self._row.on_awaiting_input is OnAwaitingInput.KILL:
            self.cancel(BY_AWAITING_INPUT)

    def noticed(self, kind: NoticeKind) -> None:
        """Counts a notice: of a gap for each reader, of the others once."""
        self._metrics.executions.noticed(kind)

    # -- how others see it

    @property
    def row(self) -> ExecutionRow:
        """What is written down of it, but for its end."""
        return self._row

    @property
    def explicit_acknowledgements(self) -> bool:
        """Whether its client says by itself what may be released."""
        return self._row.explicit_acknowledgements

    @property
    def cancelled_by(self) -> str:
        """Who cancelled it; empty if nobody did."""
        return self._row.cancelled_by

    @property
    def detached(self) -> bool:
        """Whether it goes on without a client."""
        return self._row.detach

    @property
    def attached(self) -> bool:
        """Whether somebody follows it now."""
        return self._attached > 0

    @property
    def finished(self) -> Finished | None:
        """How it ended; ``None`` while it runs or waits."""
        return self.ended.result() if self.ended.done() and self.ended.exception() is None else None

    @property
    def started(self) -> Started:
        """Its beginning, without offsets."""
        return Started(self.id, self.timeout_s, {}, self.created_at)

    @property
    def bounds(self) -> Bounds:
        """What it can have used up to now, at most."""
        spec = self.record.spec
        lasted_s = asyncio.get_running_loop().time() - self._born
        return Bounds(lasted_s, spec.cpu_limit, spec.memory_limit_bytes, spec.pids_limit)

    def sandbox_usage(self) -> ResourceUsage | None:
        """What its sandbox uses now; ``None`` where that cannot be seen."""
        container_id = self.record.container_id
        return self._runtime.usage(container_id) if container_id is not None else None

    def info(self) -> ExecutionInfo:
        """The execution as others see it."""
        return ExecutionInfo(
            id=self.id,
            sandbox_id=self.record.id,
            tool=self.tool,
            created_at=self.created_at,
            timeout_s=self.timeout_s,
            context=self.context or "",
            detach=self.detached,
            readers=self._attached,
            awaiting_input=self.handle.awaiting_input,
            terminal=self._row.terminal is not None,
            finished=self.finished,
        )

    def _enter(self, *, observe: bool = False) -> None:
        self._attached += 1
        self._metrics.executions.followed(1)
        self._clients += not observe
        if self._detach is not None and not observe:
            self._detach.cancel()
            self._detach = None

    def _leave(self, *, observe: bool = False) -> None:
        self._attached -= 1
        self._metrics.executions.followed(-1)
        if not observe:
            self._clients -= 1
            self.expect_client()

    def expect_client(self) -> None:
        """Starts the grace, if nobody does more than observe it, and it is not to go on so."""
        if self._clients == 0 and not self.detached and not self.ended.done() and self._detach is None:
            loop = asyncio.get_running_loop()
            self._detach = loop.call_later(self._row.detach_grace_s, self._end_grace)

    def _end_grace(self) -> None:
        """Nobody came. While the sandbox is paused, time does not count, and the grace begins anew."""
        self._detach = None
        if self.record.state is SandboxState.PAUSED:
            self.expect_client()
        else:
            self.cancel(BY_GRACE)
