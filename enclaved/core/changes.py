"""Every change of a sandbox, numbered and written down with it, and told to whoever follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Final

from enclaved.core.record import SandboxRecord
from enclaved.core.state import EndedRequest, SandboxTable
from enclaved.errors import InvalidRequest, LimitReached, RevisionGone, ShuttingDown
from enclaved.metrics import Metrics
from enclaved.model import (
    Bookmark,
    Cause,
    SandboxEvent,
    SandboxEventKind,
    SandboxFilter,
    SandboxState,
)

START_GAP: Final = 1000
"""A daemon begins this much above what it finds. What an earlier one may have told of and could not write down any
more is then never mistaken for something else."""
HEARTBEAT_DEFAULT_S: Final = 10.0
HEARTBEAT_MIN_S: Final = 0.1
HEARTBEAT_MAX_S: Final = 3600.0
FOLLOWERS_MOST: Final = 128


class Changes:
    """The numbered changes of all sandboxes. They outlive the daemon; the oldest are dropped.

    Followers read what was written down, each at its own pace: one that is slow costs nothing, and one that is slower
    than what is kept is told so.
    """

    def __init__(self, table: SandboxTable, metrics: Metrics) -> None:
        self._table, self._chronicle, self._metrics = table, table.chronicle, metrics
        newest = self._chronicle.newest()
        self.revision = newest + START_GAP if newest else 1
        """The number of the newest change."""
        self._chronicle.begin(self.revision)
        self._news = asyncio.Event()
        self._followers = 0
        self._ended = False

    # -- writing down

    def enter(self, record: SandboxRecord, state: SandboxState, reason: str, cause: Cause) -> None:
        """Changes the state of a sandbox, and writes that down."""
        if record.state is not SandboxState.DELETING:
            record.enter(state, reason, cause)
            self.note(record, cause)

    def move(self, record: SandboxRecord, state: SandboxState, cause: Cause) -> None:
        """Changes the state of a sandbox if that can be written down. Raises `NoSpace`; then nothing has changed."""
        before = record.state, record.state_reason, record.updated_at
        record.enter(state, "", cause)
        try:
            self.save(record, cause)
        except BaseException:
            record.undo(*before)
            raise

    def save(self, record: SandboxRecord, cause: Cause) -> None:
        """Writes a sandbox down that has changed or is new. Raises `NoSpace`; then nothing was written."""
        event = self._event(record, cause)
        before, record.revision = record.revision, event.revision
        try:
            self._table.save(record.row(), event)
        except BaseException:
            record.revision = before
            raise
        self._told(record, event)

    def note(self, record: SandboxRecord, cause: Cause) -> None:
        """Writes down what has changed of a sandbox, at once or as soon as the disk allows."""
        event = self._event(record, cause)
        record.revision = event.revision
        self._table.note(record.row(), event)
        self._told(record, event)

    def keep(self, record: SandboxRecord) -> None:
        """Writes down what will be told when it has happened. Raises `NoSpace`."""
        self._table.save(record.row())

    def settled(self, record: SandboxRecord) -> None:
        """Writes down what nobody else need know of."""
        self._table.note(record.row())

    def forget(self, record: SandboxRecord) -> None:
        """Drops a sandbox of which nothing is left."""
        cause = record.history[-1].cause if record.history else Cause.DAEMON
        request = None
        if record.request_id and record.was_made:
            now = datetime.now(UTC)
            request = EndedRequest(record.tenant, record.request_id, record.request_digest, record.id, now)
        if record.told is None:
            self._table.forget(record.id, record.number, None, request)
            return
        event = self._event(record, cause, SandboxEventKind.DELETED)
        self._table.forget(record.id, record.number, event, request)
        self._told(record, event)

    def _event(
        self, record: SandboxRecord, cause: Cause, kind: SandboxEventKind = SandboxEventKind.CHANGED
    ) -> SandboxEvent:
        if record.told is None:
            kind = SandboxEventKind.CREATED
        state_before, labels_before = record.told or (record.state, record.labels)
        return SandboxEvent(
            revision=self.revision + 1,
            kind=kind,
            at=datetime.now(UTC),
            cause=cause,
            sandbox=record.snapshot(self.revision + 1),
            state_before=state_before,
            labels_before=labels_before,
        )

    def _told(self, record: SandboxRecord, event: SandboxEvent) -> None:
        self.revision = event.revision
        record.told = (record.state, record.labels)
        self._news.set()
        self._news = asyncio.Event()
        self._chronicle.prune()

    # -- following

    @property
    def written(self) -> int:
        """The number of the newest change that is written down: what can be followed from."""
        return self._chronicle.newest()

    async def follow(
        self, after: int = 0, wanted: SandboxFilter | None = None, heartbeat_s: float = 0.0
    ) -> AsyncGenerator[SandboxEvent | Bookmark]:
        """Tells of every change after a revision (0: from now on), first of where it begins; never ends by itself.

        Without news it says so every ``heartbeat_s`` seconds (0: 10). Raises `InvalidRequest`, `LimitReached`,
        `RevisionGone` where changes after the revision are not kept any more, and `ShuttingDown`.
        """
        if after < 0:
            raise InvalidRequest.of("revision", "must be 0 or more; take it from a listing")
        if heartbeat_s and not HEARTBEAT_MIN_S <= heartbeat_s <= HEARTBEAT_MAX_S:
            text = f"must be from {HEARTBEAT_MIN_S:g} to {HEARTBEAT_MAX_S:g}, or 0 for {HEARTBEAT_DEFAULT_S:g}"
            raise InvalidRequest.of("heartbeat_s", text)
        if self._followers >= FOLLOWERS_MOST:
            text = f"{FOLLOWERS_MOST} clients watch sandboxes already; end one of them, or list instead"
            raise LimitReached("daemon", "watches", text)
        self._followers += 1
        self._metrics.sandboxes.watched(1)
        try:
            async for news in self._follow(after or self.written, wanted or SandboxFilter(), heartbeat_s):
                yield news
        finally:
            self._followers -= 1
            self._metrics.sandboxes.watched(-1)

    async def _follow(
        self, seen: int, wanted: SandboxFilter, heartbeat_s: float
    ) -> AsyncGenerator[SandboxEvent | Bookmark]:
        every_s = heartbeat_s or HEARTBEAT_DEFAULT_S
        clock = asyncio.get_running_loop().time
        self._check_kept(seen)
        yield Bookmark(seen)
        due = clock() + every_s
        while True:
            if self._ended:
                raise ShuttingDown
            news = self._news
            self._check_kept(seen)
            found = self._chronicle.after(seen)
            for event in found:
                if isinstance(event, int):
                    seen = event
                    continue
                seen = event.revision
                if event.concerns(wanted):
                    yield event
                    due = clock() + every_s
            if clock() >= due:  # also where only others change: a reader must not fall behind what is kept
                yield Bookmark(seen)
                due = clock() + every_s
            if found:
                await asyncio.sleep(0)  # a long past, of which nothing is wanted, must hold nobody up
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await news.wait()

    def end_following(self) -> None:
        """The daemon stops: those who follow go on at the next one."""
        self._ended = True
        self._news.set()

    def _check_kept(self, revision: int) -> None:
        if not self._chronicle.has(revision):
            raise RevisionGone(revision, self.revision)
