"""Pools as callers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

MemberState = Literal["idle", "busy", "resetting", "replacing"]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How the members of a pool are kept."""

    contexts: tuple[str, ...] = ()
    """Contexts that are open in each member when it is lent."""
    preload: tuple[str, ...] = ()
    """Modules that are imported in these contexts; without any, in the context ``default``."""
    member_age_max_s: float | None = None
    """Age in seconds at which a member is replaced ahead of demand; ``None``: by its time to live alone."""
    refill_per_s: float | None = None
    """How many members are made in a second at most in place of others; ``None``: 4."""


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What somebody wants changed of a pool. ``None``: it stays."""

    size: int | None = None
    member_age_max_s: float | None = None
    """0: by the time to live alone."""
    refill_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class PoolMember:
    """One slot of a pool."""

    slot: int
    sandbox_id: str
    """Empty: no sandbox was made for it yet."""
    state: str
    """``idle``, ``busy``, ``resetting`` or ``replacing``."""
    state_s: float
    """Seconds for which it is in this state."""
    age_s: float
    """Seconds since its sandbox was made."""
    calls: int
    """Calls that its sandbox has served."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool, its members and what has happened in it since the daemon's start."""

    id: str
    origin: str
    """``caller``, or ``operator`` if the daemon's configuration defines it."""
    size: int
    members: tuple[PoolMember, ...]
    waiting: int
    """Callers that wait for a member."""
    counters: Mapping[str, int]
    """``runs``, ``claims``, ``resets``, ``replaced``, ``failed``, ``refused``."""
    trouble: str
    """Why members cannot be made at the moment; empty: nothing is known to be wrong."""
    image: str
    """Image that was asked for; empty: the daemon's default."""
    labels: Mapping[str, str]
    options: PoolOptions
    created_at: datetime

    @property
    def idle(self) -> int:
        """How many members are free."""
        return sum(member.state == "idle" for member in self.members)


@dataclass(frozen=True, slots=True)
class PoolClaim:
    """A wish for a member of a pool as a sandbox of one's own. ``None``: as in the pool."""

    ttl_s: float | None = None
    """Seconds to live from now on."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All labels that it is to have."""
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None
    pids_limit: int | None = None
    request_id: str = ""
    """Makes it safe to ask again; empty: one is made up for each call."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One use of a member that is over."""

    number: int
    """Order of the leases of a pool, from 1."""
    pool_id: str
    slot: int
    sandbox_id: str
    kind: str
    """``run`` or ``claim``."""
    execution_id: str
    tool: str
    verdict: str
    """How the run ended; empty: that was not seen, or it is a claim."""
    created_at: datetime
    """When the member was lent."""
    waited_s: float
    held_s: float
    reset_s: float
    outcome: str
    """``clean``, ``replaced`` or ``claimed``."""
    reason: str
    """Why the member was replaced."""
    proof: Mapping[str, int] | None
    """What the reset found and what was left then, by name; ``None``: nothing could be shown."""
