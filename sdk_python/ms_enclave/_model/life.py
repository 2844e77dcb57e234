"""What becomes of sandboxes: which ones somebody wants to see, the history of one, and changes as they happen."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ms_enclave._model.enums import SandboxStatus
from ms_enclave._model.results import SandboxInfo


class Cause(enum.StrEnum):
    """What made a sandbox change."""

    REQUEST = "request"
    DAEMON = "daemon"
    """The daemon itself: what one before it left unfinished, or what a pool needs."""
    ENGINE = "engine"
    """It died, or somebody else changed its container."""
    TTL = "ttl"
    IDLE = "idle"


class SandboxEventKind(enum.StrEnum):
    """What happened to a sandbox."""

    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"
    BOOKMARK = "bookmark"
    """Nothing else up to this revision: a sign of life."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a sandbox's state."""

    time: datetime
    """In local time."""
    status: SandboxStatus
    reason: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """Which sandboxes somebody wants to see. What is empty or ``None`` excludes nothing."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them, with these values."""
    statuses: Collection[SandboxStatus] = ()
    tenant: str = ""
    created_before: datetime | None = None
    """Local time if it has no zone."""
    created_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class SandboxListing:
    """The sandboxes at one moment, oldest first."""

    sandboxes: tuple[SandboxInfo, ...]
    revision: int
    """What to watch from, so as to miss nothing."""


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """One change of one sandbox, or a bookmark."""

    kind: SandboxEventKind
    revision: int
    """What to watch from after this."""
    info: SandboxInfo | None = None
    """The sandbox after the change, or as it was last, without its environment; ``None``: a bookmark."""
    cause: Cause | None = None
    time: datetime | None = None
    """In local time."""
    matches: bool = False
    """Whether it is still among those that are watched."""
