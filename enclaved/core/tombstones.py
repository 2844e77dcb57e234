"""What is left of executions whose records went: enough to answer the same id again, and never to run it twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from enclaved.core.execution_rows import ExecutionRow, ExecutionText
from enclaved.core.record import SandboxRecord
from enclaved.core.state.rows import decode, encode_as
from enclaved.model import Finished

TOMBSTONES_PER_SANDBOX: Final = 4096
TOMBSTONES: Final = 100_000
_TEXT_MOST: Final = 256


class Tombstone(NamedTuple):
    """An execution that has ended. What is written down of it stays as it was."""

    record: SandboxRecord
    id: str
    body: str
    """Its row without its end, as JSON: a fraction of the objects."""
    end: str
    """How it ended, as JSON."""

    @property
    def row(self) -> ExecutionRow:
        """What is written down of it, without its end."""
        found: ExecutionRow = decode(ExecutionRow, self.body)
        return found

    @property
    def finished(self) -> Finished:
        """How it ended."""
        found: Finished = decode(Finished, self.end)
        return found


class Tombstones:
    """The last of each sandbox, for its life, and of all sandboxes; the oldest go first.

    ``drop`` is told the id of each that goes, so that its row can go too.
    """

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._on_drop = drop
        self._all: dict[str, Tombstone] = {}
        self._of: dict[SandboxRecord, dict[str, None]] = {}

    def bury(self, record: SandboxRecord, row: ExecutionRow, finished: Finished) -> bool:
        """Keeps what is left of an execution. False if there is nothing to keep it for: its sandbox went."""
        body = encode_as(ExecutionRow, row, leave_out=("finished",))
        return self._keep(Tombstone(record, row.id, body, encode_as(Finished, _short(finished))))

    def restore(self, record: SandboxRecord, text: ExecutionText) -> bool:
        """Keeps one that an earlier daemon has written down, without reading it. False as `bury`."""
        return self._keep(Tombstone(record, text.id, text.body, text.finished or "null"))

    def _keep(self, tombstone: Tombstone) -> bool:
        record = tombstone.record
        if record.is_forgotten:
            return False
        if record not in self._of:
            record.on_forgotten = lambda: self._drop_all(record)
        self._all[tombstone.id] = tombstone
        of_this = self._of.setdefault(record, {})
        of_this[tombstone.id] = None
        if len(of_this) > TOMBSTONES_PER_SANDBOX:
            self._drop(next(iter(of_this)))
        elif len(self._all) > TOMBSTONES:
            self._drop(next(iter(self._all)))
        return True

    def find(self, execution_id: str) -> Tombstone | None:
        """Finds what is left of an execution."""
        return self._all.get(execution_id)

    def take(self, tombstone: Tombstone) -> None:
        """Takes one out, since it has a record again."""
        self._take(tombstone.id)

    def __len__(self) -> int:
        return len(self._all)

    def _take(self, execution_id: str) -> None:
        record = self._all.pop(execution_id).record
        of_this = self._of[record]
        del of_this[execution_id]
        if not of_this:
            del self._of[record]

    def _drop(self, execution_id: str) -> None:
        self._take(execution_id)
        self._on_drop(execution_id)

    def _drop_all(self, record: SandboxRecord) -> None:
        for execution_id in [*self._of.get(record, ())]:
            self._drop(execution_id)


def _short(finished: Finished) -> Finished:
    """The same end with less text: there may be very many."""
    exception = finished.exception
    if len(finished.message) <= _TEXT_MOST and (exception is None or len(exception.message) <= _TEXT_MOST):
        return finished
    if exception is not None:
        exception = replace(exception, message=exception.message[:_TEXT_MOST])
    return replace(finished, message=finished.message[:_TEXT_MOST], exception=exception)
