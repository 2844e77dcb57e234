"""What an execution is, and what happens in one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

STDOUT = 1
STDERR = 2
TERMINAL = 3
CHANNEL_NAMES = {STDOUT: "stdout", STDERR: "stderr", TERMINAL: "terminal"}


class Verdict(enum.StrEnum):
    """Why an execution ended. The list is closed."""

    EXITED = "EXITED"
    EXCEPTION = "EXCEPTION"
    SIGNALED = "SIGNALED"
    TIMEOUT = "TIMEOUT"
    IDLE_TIMEOUT = "IDLE_TIMEOUT"
    CANCELLED = "CANCELLED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    DISK_LIMIT = "DISK_LIMIT"
    PIDS_LIMIT = "PIDS_LIMIT"
    SANDBOX_LOST = "SANDBOX_LOST"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class Retention(enum.StrEnum):
    """What happens to output that nobody has acknowledged."""

    UNTIL_ACK = "until_ack"
    KEEP_LAST = "keep_last"


class OnAwaitingInput(enum.StrEnum):
    """What happens when a program waits for input that nobody sends."""

    NOTICE = "notice"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One wish to run a tool. ``timeout_s=None``: parameter, tool option or sandbox decide.

    ``retention=None``: `Retention.UNTIL_ACK`, or `Retention.KEEP_LAST` for a detached one. ``idle_timeout_s=0``: none.
    ``context=""``: the tool's own.
    """

    sandbox_id: str
    tool: str
    parameters: Mapping[str, Any]
    execution_id: str = ""
    timeout_s: float | None = None
    output_limit_bytes: int | None = None
    stdin: bool = False
    merge_stderr: bool = False
    detach_grace_s: float = 60.0
    idle_timeout_s: float = 0.0
    terminal: TerminalSize | None = None
    retention: Retention | None = None
    keep_last_bytes: int | None = None
    detach: bool = False
    context: str = ""
    on_awaiting_input: OnAwaitingInput = OnAwaitingInput.NOTICE


@dataclass(frozen=True, slots=True)
class Started:
    """The execution exists."""

    execution_id: str
    timeout_s: float
    offsets: Mapping[int, int]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output: exact by offset in its channel."""

    channel: int
    offset: int
    data: bytes
    time_s: float
    late: bool = False
    """Written by threads of the context between the call before and this one."""


class NoticeKind(enum.StrEnum):
    """What a `Notice` is about."""

    AWAITING_INPUT = "awaiting_input"
    GAP = "gap"
    CONTEXT_RESET = "context_reset"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that is neither output nor the end."""

    kind: NoticeKind
    message: str
    channel: int | None = None
    offset: int = 0
    length_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ExceptionInfo:
    """An exception that a program did not catch: the claim of its interpreter."""

    type: str
    message: str
    errno: int | None = None
    """The error number of the operating system, where it was one."""


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """Resources that an execution or a sandbox used. ``memory_bytes`` and ``pids`` are of now, only in samples."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    memory_bytes: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True)
class StatsSample:
    """What an execution and its sandbox used up to a moment. ``sandbox=None``: the daemon cannot see that."""

    time_s: float
    execution: ResourceUsage
    sandbox: ResourceUsage | None


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the wall time of an execution went."""

    queued_s: float = 0.0
    starting_s: float = 0.0
    running_s: float = 0.0
    draining_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A limit that was met during an execution, fatal or not. 0 where ``peak`` or ``maximum`` is not known."""

    limit: str
    count: int
    peak: int = 0
    maximum: int = 0


class SignalSender(enum.StrEnum):
    """Who sent the signal that ended a program, where that is known."""

    CALLER = "caller"
    DAEMON = "daemon"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Finished:
    """How an execution ended."""

    verdict: Verdict
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    attested: bool = True
    exception: ExceptionInfo | None = None
    bytes_total: Mapping[int, int] = field(default_factory=dict)
    usage: ResourceUsage = ResourceUsage()
    phases: Phases = Phases()
    state_preserved: bool | None = None
    limits_hit: tuple[LimitHit, ...] = ()
    timeout_s: float = 0.0
    signal_sender: SignalSender | None = None
    cancelled_by: str = ""


Event = Started | Output | StatsSample | Notice | Finished


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """An execution as others see it. ``finished=None``: it runs or waits."""

    id: str
    sandbox_id: str
    tool: str
    created_at: datetime
    timeout_s: float
    context: str
    detach: bool
    readers: int
    awaiting_input: bool
    terminal: bool
    finished: Finished | None


@dataclass(frozen=True, slots=True)
class ExecutionPage:
    """One page of a listing."""

    executions: tuple[ExecutionInfo, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A persistent interpreter of a sandbox."""

    name: str
    sandbox_id: str
    created_at: datetime
    calls: int
    execution_id: str
    queued: int
    alive: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """The whole of a short execution, or (``finished is None``) as much of it as fits into one answer."""

    execution_id: str
    stdout: bytes
    stderr: bytes
    notices: tuple[Notice, ...]
    finished: Finished | None
