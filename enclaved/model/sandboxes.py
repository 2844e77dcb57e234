"""What a sandbox is: asked for, granted, and as others see it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

EMPTY: Mapping[str, Any] = MappingProxyType({})


DEFAULT_TENANT: Final = "default"
"""Whose sandboxes all are while there are no keys that say otherwise."""


class SandboxState(enum.StrEnum):
    """Where a sandbox is in its life."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    PAUSED = "paused"
    DELETING = "deleting"


class Cause(enum.StrEnum):
    """What made a sandbox change its state."""

    REQUEST = "request"
    DAEMON = "daemon"
    ENGINE = "engine"
    TTL = "ttl"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a sandbox's state."""

    at: datetime
    state: SandboxState
    reason: str
    cause: Cause


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


class Network(enum.StrEnum):
    """Which network the programs of a sandbox see."""

    NONE = "none"
    """Their own loopback, and nothing else."""
    BRIDGE = "bridge"
    """A bridge of the daemon's own: the outside, but neither the host nor other sandboxes nor private addresses."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A host directory that was granted."""

    host_path: str
    """Absolute, normalised, without links in it."""
    target: str
    """Absolute path in the sandbox."""
    read_only: bool


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
    auto_resume: bool | None = None
    idle_timeout_s: float | None = None
    runtime_class: str | None = None
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
    auto_resume: bool = False
    """Whether it is resumed by itself when it is used while it is paused."""
    kill_at_pids_limit: bool = False
    """Whether an execution that meets the limit of processes is killed (`Verdict.PIDS_LIMIT`)."""
    idle_timeout_s: float = 0.0
    """How long it may be unused before it is removed; 0: for ever."""
    network: Network = Network.NONE
    mounts: tuple[Mount, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    """Ports to publish; a ``host_port`` of 0 lets the engine choose."""
    extra_hosts: Mapping[str, str] = field(default_factory=dict)
    """Lines of /etc/hosts beside ours: name to address."""
    command: tuple[str, ...] = ()
    """A program to start with the sandbox, as argv."""
    platform: str = ""
    """The image's platform as the engine knows it; empty: the engine's own."""
    runtime_class: str = ""
    """What isolates it: the name of a configured class; empty: the engine's runc."""
    may_pull: bool = True
    """Whether its image may be pulled for it, if the engine lacks it and ``engine.pull`` allows that."""
    role: str = ""
    """The role of the policy that granted all this."""
    image_digest: str = ""
    """The digest that the image must turn out to have; empty: any."""
    output_limit_bytes: int = 0
    """Output of an execution whose caller sets no limit; 0: any, or the most that there is."""
    output_limit_max_bytes: int = 0
    """Most output of an execution; 0: any."""
    command_options: Mapping[str, Any] | None = field(default_factory=dict)
    """Options of ``shell_executor`` that hold for ``execute_command``, whatever tools are enabled; ``None``: the policy
    grants no commands."""


@dataclass(frozen=True, slots=True)
class SandboxUpdate:
    """What a caller wants changed of a sandbox. ``None``: it stays."""

    ttl_s: float | None = None
    """Time to live from now on."""
    labels: Mapping[str, str] | None = None
    """All labels that it is to have."""
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None
    pids_limit: int | None = None
    idle_timeout_s: float | None = None
    """0: it may be unused for as long as it likes."""


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
    tenant: str = DEFAULT_TENANT
    revision: int = 0
    """Of its last change."""
    used_at: datetime | None = None
    """When it was last used, as far as is known."""
    owner: str = ""
    """The name of the identity that made it."""
    waived: tuple[str, ...] = ()
    """Protections that a grant took from it, such as ``uid_separation``."""
    command_execution_id: str = ""
    """The execution of the command that was started with it; empty: none."""
    published_ports: tuple[PortMapping, ...] = ()
    """Ports that are published, with the host ports that the engine chose."""


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """Which sandboxes somebody wants to see. What is empty or ``None`` excludes nothing."""

    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """All of them, with these values."""
    states: frozenset[SandboxState] = frozenset()
    tenant: str = ""
    created_before: datetime | None = None
    created_after: datetime | None = None

    def shows(self, sandbox: Sandbox) -> bool:
        """Whether a sandbox is among them."""
        return self.fits(sandbox, sandbox.state, sandbox.labels)

    def fits(self, sandbox: Sandbox, state: SandboxState, labels: Mapping[str, str]) -> bool:
        """Whether a sandbox would be among them in another state and with other labels."""
        return (
            (not self.states or state in self.states)
            and (not self.tenant or sandbox.tenant == self.tenant)
            and (self.created_before is None or sandbox.created_at < self.created_before)
            and (self.created_after is None or sandbox.created_at > self.created_after)
            and all(labels.get(name) == value for name, value in self.labels.items())
        )


@dataclass(frozen=True, slots=True)
class SandboxPage:
    """One page of a listing."""

    sandboxes: tuple[Sandbox, ...]
    next_page_token: str
    revision: int = 0
    """What was true when the first page was made: changes after it are news."""


class SandboxEventKind(enum.StrEnum):
    """What happened to a sandbox."""

    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """One change of one sandbox."""

    revision: int
    kind: SandboxEventKind
    at: datetime
    cause: Cause
    sandbox: Sandbox
    """As it was after the change, or last; without its environment."""
    state_before: SandboxState
    labels_before: Mapping[str, str]

    def concerns(self, wanted: SandboxFilter) -> bool:
        """Whether somebody who looks at these sandboxes sees the change: it is among them now, or was before."""
        return wanted.shows(self.sandbox) or wanted.fits(self.sandbox, self.state_before, self.labels_before)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Up to this revision there was nothing else for whoever is told."""

    revision: int


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


class Intervention(enum.StrEnum):
    """What somebody else did at the engine to the container of a sandbox."""

    REMOVED = "removed"
    STOPPED = "stopped"
    KILLED = "killed"
    RESTARTED = "restarted"
    PAUSED = "paused"
    RESUMED = "resumed"
    SIGNALLED = "signalled"
    LIMITS_CHANGED = "limits_changed"
    RENAMED = "renamed"
    COMMAND_RUN = "command_run"
    FILES_COPIED = "files_copied"
    NETWORK_CONNECTED = "network_connected"


class RecoveryOutcome(enum.StrEnum):
    """What became of a sandbox of an earlier daemon."""

    ADOPTED = "adopted"
    LOST = "lost"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool and its members, in the order of their slots."""

    id: str
    sandbox_ids: tuple[str, ...]
