"""Pools: what one is to be, what its members do, and what is written down of each use."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from enclaved.model.executions import Verdict
from enclaved.model.sandboxes import EMPTY, MemberState, Sandbox, SandboxRequest, SandboxUpdate

POOL_REFILL_PER_S = 4.0


class PoolOrigin(enum.StrEnum):
    """Who defines a pool."""

    CALLER = "caller"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What a pool is to be."""

    size: int
    request: SandboxRequest = field(default_factory=SandboxRequest)
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    contexts: tuple[str, ...] = ()
    """Contexts that are open in each member when it is lent."""
    preload: tuple[str, ...] = ()
    """Modules that are imported in these contexts; without any, in the context ``default``."""
    member_age_max_s: float | None = None
    """A member that is idle and older is replaced; ``None``: by the time to live alone."""
    refill_per_s: float = POOL_REFILL_PER_S
    """How many members are made in a second at most, in place of others."""

    @property
    def warm_contexts(self) -> tuple[str, ...]:
        """Contexts that are opened before a member is lent."""
        return self.contexts or (("default",) if self.preload else ())


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What is to change of a pool. ``None``: it stays."""

    size: int | None = None
    member_age_max_s: float | None = None
    """0: by the time to live alone."""
    refill_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class PoolMember:
    """One slot of a pool, as others see it."""

    slot: int
    sandbox_id: str
    """Empty: no sandbox has been made for it yet."""
    state: MemberState
    state_s: float
    """Seconds for which it is in this state."""
    age_s: float
    """Seconds since its sandbox was made; 0: none was."""
    calls: int
    """Calls that its sandbox has served."""


@dataclass(slots=True)
class PoolCounters:
    """What has happened in a pool since the daemon's start."""

    runs: int = 0
    claims: int = 0
    resets: int = 0
    """Resets that left a member as new."""
    replaced: int = 0
    failed: int = 0
    """Attempts to make a member that failed."""
    refused: int = 0
    """Callers who got no member in time."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool with its members, in the order of their slots."""

    id: str
    origin: PoolOrigin
    plan: PoolPlan
    members: tuple[PoolMember, ...]
    waiting: int
    counters: PoolCounters
    trouble: str
    """Why members cannot be made at the moment; empty if nothing is known."""
    created_at: datetime


class LeaseKind(enum.StrEnum):
    """For what a member was lent."""

    RUN = "run"
    CLAIM = "claim"


class LeaseOutcome(enum.StrEnum):
    """What became of the member afterwards."""

    CLEAN = "clean"
    REPLACED = "replaced"
    CLAIMED = "claimed"


@dataclass(frozen=True, slots=True)
class ResetProof:
    """What a reset found, and what was left after it. All ``left`` are numbers that somebody counted."""

    processes_killed: int = 0
    files_removed: int = 0
    objects_removed: int = 0
    """Shared memory, semaphores and message queues of System V."""
    processes_left: int = 0
    contexts_left: int = 0
    files_left: int = 0
    """In all places where the user may write, POSIX shared memory and message queues included."""
    objects_left: int = 0
    keys_left: int = 0
    """Keys and keyrings of the kernel that the user has, beyond those of the new sandbox."""
    variables_left: int = 0
    """Environment variables of a process that was given none."""
    mounts_changed: bool = False
    """Whether the table of mounts differs from that of the new sandbox."""

    @property
    def leftovers(self) -> tuple[str, ...]:
        """What of this must not be, in words; empty: the sandbox is as new."""
        counts = {
            "processes": self.processes_left,
            "contexts": self.contexts_left,
            "files or shared objects": self.files_left + self.objects_left,
            "keys": self.keys_left,
            "environment variables": self.variables_left,
        }
        words = [f"{count} {what}" for what, count in counts.items() if count]
        return (*words, *(("another table of mounts",) if self.mounts_changed else ()))


@dataclass(frozen=True, slots=True)
class Lease:
    """One use of a member, written down when it is over."""

    number: int
    """Order of the leases of a pool, from 1."""
    pool_id: str
    slot: int
    sandbox_id: str
    kind: LeaseKind
    execution_id: str
    tool: str
    verdict: Verdict | None
    created_at: datetime
    """When the member was lent."""
    waited_s: float
    """How long the caller waited for it."""
    held_s: float
    reset_s: float
    outcome: LeaseOutcome
    reason: str = ""
    """Why the member was replaced."""
    proof: ResetProof | None = None
    """``None``: nothing could be shown, or the member was claimed."""


@dataclass(frozen=True, slots=True)
class LeasePage:
    """One page of leases, newest first."""

    leases: tuple[Lease, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ClaimWish:
    """A wish for a member of a pool as a sandbox of one's own."""

    change: SandboxUpdate = field(default_factory=SandboxUpdate)
    """What is to be other than in the pool. Its labels replace those of the pool."""
    request_id: str = ""
    """Makes it safe to ask again; empty: each time another one."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A sandbox that was claimed, and how long that took."""

    sandbox: Sandbox
    waited_s: float
    changed_s: float
    """Writing it down, and with other limits, the engine's change."""
