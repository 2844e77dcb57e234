"""What happens in an execution, for those who watch it: first `Started`, then any mix of `Output` and `Notice`,
then exactly one `Finished`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ms_enclave._model.enums import Verdict


class Channel(enum.StrEnum):
    """A stream of bytes that a program writes."""

    STDOUT = "stdout"
    STDERR = "stderr"
    TERMINAL = "terminal"


class NoticeKind(enum.StrEnum):
    """What a `Notice` is about."""

    AWAITING_INPUT = "awaiting_input"
    GAP = "gap"
    CONTEXT_RESET = "context_reset"
    OTHER = "other"
    """Of a kind that this version does not know."""


@dataclass(frozen=True, slots=True)
class Started:
    """The execution exists and will run for at most ``timeout_s`` seconds."""

    execution_id: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output, exact by offset in its channel. Not necessarily whole characters."""

    channel: Channel
    offset: int
    data: bytes
    time_s: float
    """Seconds since the execution started."""


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
    """Resources that the execution used."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the wall time went, in seconds."""

    queued_s: float = 0.0
    starting_s: float = 0.0
    running_s: float = 0.0
    draining_s: float = 0.0


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


Event = Started | Output | Notice | Finished
