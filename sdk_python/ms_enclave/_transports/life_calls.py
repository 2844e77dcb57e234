"""The part of a transport that is about the life of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ms_enclave._model import SandboxInfo
from ms_enclave._model.life import SandboxEvent, SandboxFilter, SandboxListing, StateChange

SandboxEvents = AsyncGenerator[SandboxEvent, None]


@dataclass(frozen=True, slots=True)
class SandboxChange:
    """What somebody wants changed of a sandbox. ``None``: it stays."""

    ttl_s: float | None = None
    """Seconds to live from now on."""
    labels: Mapping[str, str] | None = None
    """All labels that it is to have."""
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None
    pids_limit: int | None = None
    idle_timeout_s: float | None = None
    """Seconds that it may be unused; 0: for ever."""


class LifecycleCalls(Protocol):
    """The life of sandboxes, beyond being created, stopped and deleted."""

    async def find(self, wanted: SandboxFilter) -> SandboxListing:
        """Lists sandboxes, oldest first, with the revision to watch from. Raises `InvalidRequest`."""
        ...

    async def history(self, sandbox_id: str) -> list[StateChange]:
        """Returns the last changes of a sandbox's state, oldest first. Raises `SandboxNotFound`."""
        ...

    def watch(self, wanted: SandboxFilter, revision: int = 0, *, heartbeat_s: float = 0.0) -> SandboxEvents:
        """Yields every change after a revision (0: from now on), first a bookmark; goes on over lost connections.

        Raises `RevisionGone` where changes are not kept any more, `InvalidRequest`, `LimitReached`, `Unavailable`.
        """
        ...

    async def pause(self, sandbox_id: str) -> SandboxInfo:
        """Freezes a sandbox; leaves a paused one alone. Raises `SandboxNotFound`, `WrongState`."""
        ...

    async def resume(self, sandbox_id: str) -> SandboxInfo:
        """Lets a paused sandbox go on; leaves a running one alone. Raises `SandboxNotFound`, `WrongState`."""
        ...

    async def update(self, sandbox_id: str, change: SandboxChange) -> SandboxInfo:
        """Changes a sandbox: all that is asked for, or nothing.

        Raises `SandboxNotFound`, `InvalidRequest`, `PolicyDenied`, `WrongState`.
        """
        ...
