"""The part of a transport that is about pools, beyond making one and running in it."""

from __future__ import annotations

from typing import Final, Protocol

from ms_enclave._model import SandboxInfo
from ms_enclave._model.pools import Lease, PoolChange, PoolClaim, PoolStats

POOL_WAIT_S: Final = 3600.0
"""How long a call waits for a free sandbox of a pool if nobody says: as long as the calls before it may run."""


class PoolCalls(Protocol):
    """Pools of a daemon. All raise `PoolNotFound` for one that is not there."""

    async def get(self, pool_id: str) -> PoolStats:
        """Shows a pool with its members."""
        ...

    async def leases(self, pool_id: str, most: int) -> list[Lease]:
        """Lists the last uses of members, newest first."""
        ...

    async def list(self) -> list[PoolStats]:
        """Shows all pools, oldest first."""
        ...

    async def update(self, pool_id: str, change: PoolChange) -> PoolStats:
        """Changes a pool while it serves. Raises `InvalidRequest`, `PolicyDenied`, `LimitReached`."""
        ...

    async def claim(self, pool_id: str, claim: PoolClaim, wait_timeout_s: float | None = None) -> SandboxInfo:
        """Takes the next free member as a sandbox of one's own. Raises `PoolBusy`, `PolicyDenied`."""
        ...
