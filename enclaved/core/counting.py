"""What the control group's counters say of each execution: its share can be told as long as it runs alone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Mapping
from typing import Final

from enclaved.core.execution import Execution
from enclaved.core.record import SandboxRecord
from enclaved.core.verdicts import Evidence
from enclaved.runtime.base import Counters, Runtime

PIDS_LOOK_EVERY_S: Final = 0.5


class Counting:
    """Reads the counters when an execution ends; what they were when it began was read at the end before it."""

    def __init__(self, runtime: Runtime, running: Mapping[SandboxRecord, Mapping[str, Execution]]) -> None:
        self._runtime, self._running = runtime, running
        self._pids_seen: dict[SandboxRecord, int] = {}

    def know(self, record: SandboxRecord) -> None:
        """Reads the counters of a sandbox in which nothing has ended yet."""
        if record.counted is None and record.container_id is not None:
            record.counted = self._runtime.counters(record.container_id)

    def begins(self, execution: Execution, others: Collection[Execution]) -> None:
        """An execution begins beside others."""
        record = execution.record
        execution.before = record.counted
        execution.alone_since = None if others else record.counted
        for other in others:
            other.accompanied()
        if record.spec.kill_at_pids_limit and record.counted is not None and not others:
            looks = record in self._pids_seen
            self._pids_seen[record] = record.counted.pids_limit_hits
            if not looks:
                self._look_at_pids_later(record)

    def goes_on(self, execution: Execution) -> None:
        """An execution that an earlier daemon started goes on. What it met while there was no daemon counts."""
        record = execution.record
        if record.spec.kill_at_pids_limit and execution.before is not None and record not in self._pids_seen:
            self._pids_seen[record] = execution.before.pids_limit_hits
            self._look_at_pids_later(record)

    def ends(self, execution: Execution, others: Collection[Execution]) -> Evidence:
        """An execution has ended, and others go on; returns what is known of it."""
        record = execution.record
        record.counted = self._runtime.counters(record.container_id) if record.container_id is not None else None
        now, options = record.counted, execution.handle.options
        if len(others) == 1:
            for other in others:
                other.alone_since = now
        return Evidence(
            timeout_s=execution.timeout_s,
            idle_timeout_s=options.idle_timeout_s,
            output_limit_bytes=options.output_limit_bytes,
            oom_kills=_grown(now, execution.before, "oom_kills"),
            oom_kills_alone=_grown(now, execution.alone_since, "oom_kills"),
            memory_peak_bytes=now.memory_peak_bytes if now is not None else 0,
            memory_limit_bytes=(now.memory_limit_bytes if now is not None else 0) or record.spec.memory_limit_bytes,
            pids_limit_hits=_grown(now, execution.before, "pids_limit_hits"),
            pids_peak=now.pids_peak if now is not None else 0,
            pids_limit=(now.pids_limit if now is not None else 0) or record.spec.pids_limit,
            killed_at_pids_limit=execution.killed_at_pids_limit,
            cancelled_by=execution.cancelled_by,
            bounds=execution.bounds,
        )

    def _look_at_pids_later(self, record: SandboxRecord) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(PIDS_LOOK_EVERY_S, self._look_at_pids, record, context=contextvars.Context())

    def _look_at_pids(self, record: SandboxRecord) -> None:
        """Kills what runs in a sandbox that has met its limit of processes: which of them it was cannot be told."""
        running = self._running.get(record)
        counters = self._runtime.counters(record.container_id) if record.container_id is not None else None
        if not running:
            del self._pids_seen[record]
            return
        if counters is not None and counters.pids_limit_hits > self._pids_seen[record]:
            self._pids_seen[record] = counters.pids_limit_hits
            for execution in list(running.values()):
                if execution.listed:
                    execution.cancel_at_pids_limit()
        self._look_at_pids_later(record)


def _grown(now: Counters | None, before: Counters | None, name: str) -> int:
    """By how much a counter has grown; 0 if that is not known."""
    if now is None or before is None:
        return 0
    return max(0, int(getattr(now, name)) - int(getattr(before, name)))
