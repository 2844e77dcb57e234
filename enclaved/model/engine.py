"""The engine, its images, and this daemon."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


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


class Channel(enum.StrEnum):
    """How frames travel between daemon and guest."""

    SOCKET = "socket"
    """The guest connects to a socket in a directory that is mounted into its sandbox."""
    ATTACH = "attach"
    """The daemon attaches to the guest's standard streams, for engines that do not see its files."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The container engine as the daemon last saw it."""

    name: str
    version: str = ""
    available: bool = False
    cgroup_version: int = 0
    channel: str = ""
    """How guests are reached there, a `Channel`; empty: the first sandbox will show it."""
    maps_users: bool = False
    """Whether user ids in its containers are not those of the host."""
    mapped_root: int | None = None
    """The host's user id of those who are root in its containers; ``None``: root, or not known."""


class ProtectionState(enum.StrEnum):
    """What is known of one protection."""

    EFFECTIVE = "effective"
    """It was seen to work."""
    WAIVED = "waived"
    """It does not work, and the configuration says that this is known."""
    ABSENT = "absent"
    """This host does not have it, and it is not required."""
    FAILED = "failed"
    """It is required and does not work: nothing is served."""
    UNKNOWN = "unknown"
    """It was not looked at yet."""


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection of the profile, and what is known of it."""

    name: str
    state: ProtectionState
    detail: str = ""
    """One sentence on what was seen."""


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
    protections: tuple[Protection, ...] = ()
    runtime_classes: tuple[str, ...] = ()
    """Names of the runtime classes that the operator configured, runc first."""
