"""What is written down of an execution, so that a daemon that was killed can take it up again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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
    alone: bool = True
    """Whether nothing else ran in the sandbox at the same time."""
    explicit_acknowledgements: bool = False
    """Whether its client says by itself what may be released."""
    cancelled_by: str = ""
    finished: Finished | None = None
    """Its end, once that was known. Set by whoever keeps the row when `ExecutionStore.finish` is called."""


class ExecutionStore(Protocol):
    """Where executions are written down. A call returns when a process that is killed then would not lose it.

    None of them waits for a disk longer than a write into its cache takes: they are on the path of every call. Any may
    raise `NoSpace`.
    """

    def save(self, row: ExecutionRow) -> None:
        """Writes an execution down, or what has changed of it."""
        ...

    def finish(self, execution_id: str, finished: Finished) -> None:
        """Writes the end of an execution down. Of one that is not there (any more): nothing."""
        ...

    def forget(self, execution_id: str) -> None:
        """Drops an execution. One that is not there is fine."""
        ...


class NoStore:
    """Writes nothing down: for a daemon whose sandboxes end with it."""

    def save(self, row: ExecutionRow) -> None:
        """See `ExecutionStore.save`."""

    def finish(self, execution_id: str, finished: Finished) -> None:
        """See `ExecutionStore.finish`."""

    def forget(self, execution_id: str) -> None:
        """See `ExecutionStore.forget`."""
