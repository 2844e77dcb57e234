"""How to run a tool, and what is known about executions and contexts."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from ms_enclave._model.events import Finished


class Retention(enum.StrEnum):
    """What happens to output that its reader has not acknowledged."""

    UNTIL_ACK = "until_ack"
    """Beyond 4 MiB the program waits for its reader. Nothing is lost."""
    KEEP_LAST = "keep_last"
    """The program never waits; the oldest output is dropped, with a notice that says which."""


class OnAwaitingInput(enum.StrEnum):
    """What happens when a program waits for input that nobody sends."""

    NOTICE = "notice"
    """A notice says so, and the program goes on waiting."""
    KILL = "kill"
    """The notice, and then it is cancelled."""


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOptions:
    """How a tool is run. What is ``None`` is left to the tool, the sandbox and the policy. Times are in seconds."""

    execution_id: str | None = None
    """Id of the execution; made up if not given. The same id twice is the same execution, never a second run."""
    timeout: float | None = None
    """How long it may run; 0: the longest that the policy allows."""
    idle_timeout: float | None = None
    """Kill it after so long without output or taken input."""
    output_limit_bytes: int | None = None
    """Kill it when it has written so much."""
    stdin: bool | bytes | str = False
    """Its standard input: text or bytes that are sent to it, or True if `Execution.write` will. False: an empty one."""
    merge_stderr: bool = False
    """Write standard error into the pipe of standard output, where the order is exact."""
    terminal: TerminalSize | bool = False
    """Give it a terminal; True: one of 24 lines with 80 characters."""
    stats_interval: float | None = None
    """How often to bring a `StatsSample`; at least 0.05. ``None``: never."""
    retention: Retention | None = None
    """What happens to output that is not read; ``None``: `Retention.UNTIL_ACK`, or for a detached one the other."""
    keep_last_bytes: int | None = None
    """How much output `Retention.KEEP_LAST` keeps, 4 KiB to 4 MiB. ``None``: 1 MiB."""
    detach: bool = False
    """Let it go on when nobody follows it. Leaving it, or cancelling the caller's task, then does not kill it."""
    detach_grace: float | None = None
    """How long it goes on when nobody follows it and it is not detached; ``None``: 60. 0: not at all."""
    context: str | None = None
    """The persistent interpreter to run in; ``None``: the default one. Others are opened with `Sandbox.contexts`."""
    on_awaiting_input: OnAwaitingInput | None = None
    """What happens when it waits for input that nobody sends; ``None``: `OnAwaitingInput.NOTICE`."""


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """An execution at one moment."""

    id: str
    sandbox_id: str
    tool: str
    created_at: datetime
    """When the daemon accepted it, in local time."""
    timeout_s: float
    """Seconds that it may run, as granted."""
    finished: Finished | None = None
    """How it ended; ``None`` if it runs or waits."""
    context: str = ""
    """The interpreter that it runs in; empty where there is none."""
    detach: bool = False
    readers: int = 0
    """Clients that follow it now."""
    awaiting_input: bool = False
    """Whether its program waits for input that nobody sends."""
    terminal: bool = False
    """Whether it has a terminal."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.finished is None


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A persistent interpreter at one moment."""

    name: str
    sandbox_id: str
    created_at: datetime
    """When it was opened or last got a new interpreter, in local time."""
    calls: int = 0
    """Calls that have ended in this interpreter."""
    execution_id: str = ""
    """The execution that runs in it now; empty if none does."""
    queued: int = 0
    """Executions that wait for it."""
    alive: bool = True
    """False if its interpreter died; the next call gets another, and says so."""
