"""What happens in an execution, for those who watch it: first `Started`, then any mix of `Output`, `StatsSample` and
`Notice`, then exactly one `Finished`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ms_enclave._model.enums import Verdict


class Channel(enum.StrEnum):
    """A stream of bytes that a program writes."""

    STDOUT = "stdout"
    STDERR = "stderr"
    TERMINAL = "terminal"


class NoticeKind(enum.StrEnum):
    """What a `Notice` is about."""

    AWAITING_INPUT = "awaiting_input"
    """The program waits for input, and none is on its way. Answer with `Execution.write`, or end the input."""
    GAP = "gap"
    """Output was dropped; ``channel``, ``offset`` and ``length_bytes`` say which."""
    CONTEXT_RESET = "context_reset"
    """The interpreter is a fresh one, since the one before had died; its variables are gone."""
    OTHER = "other"
    """Of a kind that this version does not know."""


@dataclass(frozen=True, slots=True)
class Started:
    """The execution exists and will run for at most ``timeout_s`` seconds."""

    execution_id: str
    timeout_s: float
    offsets: Mapping[Channel, int] = field(default_factory=dict)
    """The first offset that follows, for each channel."""
    created_at: datetime | None = None
    """When the daemon accepted it, in local time."""


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output, exact by offset in its channel. Not necessarily whole characters."""

    channel: Channel
    offset: int
    data: bytes
    time_s: float
    """Seconds since the execution started."""
    late: bool = False
    """True for what threads of the context wrote between the call before and this one."""

    @property
    def text(self) -> str:
        """The bytes as UTF-8 text; what is none (also half a character at an end of the piece) becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that is neither output nor the end."""

    kind: NoticeKind
    message: str
    channel: Channel | None = None
    offset: int = 0
    length_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ExceptionInfo:
    """An exception that the program did not catch: the claim of its interpreter."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """Resources that an execution or a sandbox used."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    memory_bytes: int = 0
    """In use now; only in a `StatsSample`."""
    pids: int = 0
    """Processes and threads now; only in a `StatsSample`."""


@dataclass(frozen=True, slots=True)
class StatsSample:
    """What the execution's processes and the whole sandbox used up to ``time_s`` seconds after the start."""

    time_s: float
    execution: ResourceUsage
    sandbox: ResourceUsage | None = None
    """``None`` where the daemon cannot see that."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the wall time went, in seconds."""

    queued_s: float = 0.0
    starting_s: float = 0.0
    running_s: float = 0.0
    draining_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A limit that was met: how often, the most that was used, and the limit. 0 where that is not known."""

    limit: str
    """"memory" (in bytes), "pids" or "disk" (``count``: file systems that were full)."""
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
    """How the execution ended."""

    verdict: Verdict
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    attested: bool = True
    """False if exit code or signal are the claim of an interpreter that lives on."""
    exception: ExceptionInfo | None = None
    bytes_total: Mapping[Channel, int] = field(default_factory=dict)
    usage: ResourceUsage = ResourceUsage()
    phases: Phases = Phases()
    state_preserved: bool | None = None
    """Whether the variables of the interpreter survived; ``None`` where there is none."""
    limits_hit: Mapping[str, int] = field(default_factory=dict)
    """Limits that were met on the way ("memory", "pids", "disk"), and how often."""
    timeout_s: float = 0.0
    limits: tuple[LimitHit, ...] = ()
    """The same as ``limits_hit``, with what was used and the limit."""
    signal_sender: SignalSender | None = None
    """Who sent ``signal``; ``None``: the program itself, another one of the sandbox, or not known."""
    cancelled_by: str = ""
    """Who cancelled it, for `Verdict.CANCELLED`: "its client", "a caller", or the daemon with its reason."""


Event = Started | Output | StatsSample | Notice | Finished
