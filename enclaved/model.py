"""The domain in frozen dataclasses: what a sandbox is, what an execution is, and what happens in one.

No gRPC, no HTTP, no Docker: the edges map these to and from their own forms.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[str, Any] = MappingProxyType({})

STDOUT = 1
STDERR = 2
TERMINAL = 3
CHANNEL_NAMES = {STDOUT: "stdout", STDERR: "stderr", TERMINAL: "terminal"}


# -- sandboxes ---------------------------------------------------------------------------------------------------


class SandboxState(enum.StrEnum):
    """Where a sandbox is in its life."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Volume:
    """A host directory that a caller wants in its sandbox."""

    host_path: str
    bind: str
    mode: str = "rw"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port that a caller wants published on the host."""

    container_port: str
    host_address: str = "127.0.0.1"
    host_port: int = 0


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """What a caller asks for. ``None`` means "not set": policy fills in a default and never refuses it.

    ``documented_defaults`` names fields whose value the caller left at the documented default of the Python or HTTP
    API; policy may lower them instead of refusing them.
    """

    image: str | None = None
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None
    pids_limit: int | None = None
    working_dir_size_bytes: int | None = None
    tmp_size_bytes: int | None = None
    working_dir: str | None = None
    env_vars: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    tools: Mapping[str, Mapping[str, Any]] | None = None
    timeout_s: float | None = None
    ttl_s: float | None = None
    remove_on_exit: bool | None = None
    network_enabled: bool | None = None
    network: str | None = None
    volumes: tuple[Volume, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    extra_hosts: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    platform: str | None = None
    command: tuple[str, ...] = ()
    privileged: bool | None = None
    documented_defaults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox really has: every field decided. Made only by ``core.policy``."""

    image: str
    memory_limit_bytes: int
    cpu_limit: float
    pids_limit: int
    working_dir_size_bytes: int
    tmp_size_bytes: int
    shm_size_bytes: int
    working_dir: str
    env_vars: Mapping[str, str]
    tools: Mapping[str, Mapping[str, Any]] | None
    """Enabled tools by canonical name, with their options; ``None``: all."""
    timeout_s: float
    """Timeout of executions that name none; already within the policy's maximum."""
    timeout_max_s: float
    """Longest timeout that policy grants to an execution in this sandbox."""
    ttl_s: float
    remove_on_exit: bool


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One documented default that policy lowered."""

    field: str
    wanted: str
    granted: str
    rule: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A snapshot of one sandbox for those who look at it."""

    id: str
    state: SandboxState
    state_reason: str
    spec: SandboxSpec
    adjustments: tuple[Adjustment, ...]
    labels: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    image_id: str
    active_executions: int
    uid: int


@dataclass(frozen=True, slots=True)
class SandboxPage:
    """One page of a listing."""

    sandboxes: tuple[Sandbox, ...]
    next_page_token: str


class MemberState(enum.StrEnum):
    """What a member of a pool does."""

    IDLE = "idle"
    BUSY = "busy"
    RESETTING = "resetting"
    REPLACING = "replacing"


class ResetOutcome(enum.StrEnum):
    """How a reset of a member of a pool ended."""

    CLEAN = "clean"
    REPLACED = "replaced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool and its members, in the order of their slots."""

    id: str
    sandbox_ids: tuple[str, ...]


# -- images ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far the pull of an image is, for one layer or (``layer`` empty) for all of it."""

    layer: str = ""
    status: str = ""
    """What happens, in the engine's words."""
    current_bytes: int = 0
    total_bytes: int = 0
    image_id: str = ""
    """The image on the engine; only at the end."""


# -- tools and jobs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A tool as callers see it."""

    name: str
    aliases: tuple[str, ...]
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PythonJob:
    """Runs Python source: in the named context, or (``context=None``) in a fresh interpreter."""

    code: str
    context: str | None = "default"


@dataclass(frozen=True, slots=True)
class CommandJob:
    """Runs a command: ``argv`` as it is, or ``shell`` through the image's bash (else sh)."""

    argv: tuple[str, ...] = ()
    shell: str | None = None


class FileOperation(enum.StrEnum):
    """What a `FileJob` does."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    EXISTS = "exists"
    WIPE = "wipe"


@dataclass(frozen=True, slots=True)
class FileJob:
    """Does one thing to one path, as the sandbox's user, inside the working directory or /tmp.

    A read writes the file's bytes to stdout, from ``offset``, at most ``length`` (``None``: all). A write takes its
    bytes from ``content`` or, if that is ``None``, from stdin until end of input, and renames the result into place.
    A list writes long lines as ``ls -la`` does. Exists writes ``exists`` or ``does not exist``. Write and delete write
    ``report`` when they are done. A wipe empties every place that the user may write to, whatever its path, and writes
    a JSON object with the numbers ``removed`` and ``left``. A failure is an exception of the program
    (``FileNotFoundError``, ...), with its text on stderr.
    ``encoding`` transcodes text between the file and UTF-8 on the channel; ``None`` moves bytes as they are.
    """

    operation: FileOperation
    path: str
    content: str | None = None
    encoding: str | None = None
    mode: int = 0o644
    create_parents: bool = False
    offset: int = 0
    length: int | None = None
    report: str = ""
    recursive: bool = False
    """For a delete: directories with all that is in them."""
    missing_ok: bool = False
    """For a delete: nothing there is fine."""


Job = PythonJob | CommandJob | FileJob


# -- executions --------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One wish to run a tool. ``timeout_s=None``: parameter, tool option or sandbox decide."""

    sandbox_id: str
    tool: str
    parameters: Mapping[str, Any]
    execution_id: str = ""
    timeout_s: float | None = None
    output_limit_bytes: int | None = None
    stdin: bool = False
    merge_stderr: bool = False
    detach_grace_s: float = 60.0


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
    """Resources that an execution used."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the wall time of an execution went."""

    queued_s: float = 0.0
    starting_s: float = 0.0
    running_s: float = 0.0
    draining_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A limit that was met during an execution, fatal or not."""

    limit: str
    count: int


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


Event = Started | Output | Notice | Finished


@dataclass(frozen=True, slots=True)
class RunResult:
    """The whole of a short execution, or (``finished is None``) as much of it as fits into one answer."""

    execution_id: str
    stdout: bytes
    stderr: bytes
    notices: tuple[Notice, ...]
    finished: Finished | None


# -- the engine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The container engine as the daemon last saw it."""

    name: str
    version: str = ""
    available: bool = False
    cgroup_version: int = 0


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """This daemon."""

    version: str
    started_at: datetime
    embedded: bool
    engine: EngineInfo
    active_sandboxes: int
    active_executions: int
    guest_protocol_version: int
