"""What is written down of an execution, so that a daemon that was killed can take it up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from enclaved.agent.handle import RunOptions
from enclaved.model import Finished, OnAwaitingInput, TerminalSize


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """One execution as it is written down. All that the guest does not know of it, and what must match the guest."""

    id: str
    sandbox_id: str
    tool: str
    context: str
    """Empty where it runs in none."""
    created_at: datetime
    """Exact to the microsecond, and different for every execution of a daemon: part of its name in the guest."""
    timeout_s: float
    output_limit_bytes: int | None
    idle_timeout_s: float
    stdin: bool
    merge_stderr: bool
    terminal: TerminalSize | None
    keep_last_bytes: int | None
    """``None``: its program waits until output is acknowledged."""
    detach: bool
    detach_grace_s: float
    on_awaiting_input: OnAwaitingInput
    oom_kills_before: int | None
    """The control group's counters when it started; ``None``: not known."""
    pids_limit_hits_before: int | None
    chosen: bool = False
    """Whether its caller chose the id. Then that must not run again, also when nothing else is kept any more."""
    alone: bool = True
    """Whether nothing else ran in the sandbox at the same time."""
    explicit_acknowledgements: bool = False
    """Whether its client says by itself what may be released."""
    cancelled_by: str = ""
    finished: Finished | None = None
    """Its end, once that was known. Set by whoever keeps the row when `ExecutionStore.settle` is called."""


class ExecutionText(NamedTuple):
    """A row as it was written, not read yet: there may be very many, and most are never asked for."""

    id: str
    sandbox_id: str
    body: str
    finished: str | None

    @property
    def chosen(self) -> bool:
        """See `ExecutionRow.chosen`. Within a text of JSON the quotes would have backslashes."""
        return '"chosen":true' in self.body


class ExecutionStore(Protocol):
    """Where executions are written down. A call returns when a process that is killed then would not lose it.

    None of them waits for a disk longer than a write into its cache takes: they are on the path of every call.
    """

    def save(self, row: ExecutionRow) -> None:
        """Writes an execution down, or what has changed of it. Raises `NoSpace`."""
        ...

    def settle(self, settled: Mapping[str, Finished | None]) -> None:
        """Writes the ends of executions down, by id, and drops those with ``None``. One that is not there is fine.

        It does not fail: what cannot be written now is written as soon as that works.
        """
        ...


class NoStore:
    """Writes nothing down: for a daemon whose sandboxes end with it."""

    def save(self, row: ExecutionRow) -> None:
        """See `ExecutionStore.save`."""

    def settle(self, settled: Mapping[str, Finished | None]) -> None:
        """See `ExecutionStore.settle`."""


def options_of(row: ExecutionRow) -> RunOptions:
    """How the guest was asked to run what is written down."""
    return RunOptions(
        timeout_s=row.timeout_s,
        output_limit_bytes=row.output_limit_bytes,
        stdin=row.stdin,
        merge_stderr=row.merge_stderr,
        idle_timeout_s=row.idle_timeout_s,
        terminal=row.terminal,
        keep_last_bytes=row.keep_last_bytes,
    )
