"""The answers of a pool's last calls, for those who ask again while the member that ran them is somebody else's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from enclaved.core.execution import Execution
from enclaved.core.retention import RECORD_KEPT_S
from enclaved.model import CHANNEL_NAMES, Finished, Notice, NoticeKind, RunResult

ANSWERS_MOST: Final = 1000
OUTPUT_MOST_BYTES: Final = 4 * 1024 * 1024
"""Of all answers of a pool. Beyond that, the oldest are kept without their output."""


@dataclass(slots=True)
class _Answer:
    sandbox_id: str
    due: float
    ended: asyncio.Future[Finished]
    result: RunResult | None
    """``None`` if nobody has gathered it."""

    @property
    def output_bytes(self) -> int:
        return len(self.result.stdout) + len(self.result.stderr) if self.result is not None else 0


class Answers:
    """What the calls that were named by their callers have answered, for a minute from their end, oldest first."""

    def __init__(self) -> None:
        self._kept: dict[str, _Answer] = {}
        self._output_bytes = 0

    def keep(self, execution: Execution, result: RunResult | None) -> None:
        """Keeps the answer of a call that has ended, or was cancelled since its caller has left (``None``)."""
        if not execution.row.chosen or (execution.ended.done() and execution.ended.exception() is not None):
            return
        due = asyncio.get_running_loop().time() + RECORD_KEPT_S
        self._drop(execution.id)
        answer = self._kept[execution.id] = _Answer(execution.record.id, due, execution.ended, result)
        self._output_bytes += answer.output_bytes
        self._make_room()

    def has(self, execution_id: str) -> bool:
        """Whether the answer of this call is known, or will be as soon as it has ended."""
        answer = self._kept.get(execution_id)
        if answer is not None and answer.due < asyncio.get_running_loop().time():
            self._drop(execution_id)
            return False
        return answer is not None

    def is_whole(self, execution_id: str) -> bool:
        """Whether the answer of this call is known with its output."""
        return self.has(execution_id) and self._kept[execution_id].result is not None

    async def get(self, execution_id: str) -> tuple[str, RunResult]:
        """The member that ran a call, and its answer; a notice says how much output is not kept any more."""
        answer = self._kept[execution_id]
        if answer.result is not None:
            return answer.sandbox_id, answer.result
        return answer.sandbox_id, _without_output(RunResult(execution_id, b"", b"", (), await answer.ended))

    def _drop(self, execution_id: str) -> None:
        answer = self._kept.pop(execution_id, None)
        if answer is not None:
            self._output_bytes -= answer.output_bytes

    def _make_room(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._kept:
            oldest, answer = next(iter(self._kept.items()))
            if len(self._kept) <= ANSWERS_MOST and answer.due >= now:
                break
            self._drop(oldest)
        for answer in self._kept.values():
            if self._output_bytes <= OUTPUT_MOST_BYTES:
                break
            self._output_bytes -= answer.output_bytes
            answer.result = _without_output(answer.result) if answer.result is not None else None


def _without_output(result: RunResult) -> RunResult:
    """An answer of which only the end is kept, with a notice for each channel of what is not."""
    totals = result.finished.bytes_total if result.finished is not None else {}
    gaps = [
        Notice(NoticeKind.GAP, f"{count} bytes of {CHANNEL_NAMES[channel]} are not kept any more", channel, 0, count)
        for channel, count in totals.items()
        if count
    ]
    kept = [notice for notice in result.notices if notice.kind is not NoticeKind.GAP]
    return replace(result, stdout=b"", stderr=b"", notices=(*kept, *gaps))
