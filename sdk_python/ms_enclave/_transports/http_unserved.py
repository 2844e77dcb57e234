"""What the documented HTTP routes have no words for: executions while they run, contexts, pauses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from ms_enclave._model import Channel, ContextInfo, ExecutionInfo, SandboxInfo
from ms_enclave._model.life import SandboxEvent, SandboxFilter, SandboxListing, StateChange
from ms_enclave._model.pools import Lease, PoolChange, PoolClaim, PoolStats
from ms_enclave._transports.base import ExecutionFollower, SandboxChange, ToolCall
from ms_enclave.errors import NotServed


def no_streams() -> NotServed:
    """Makes the error for what would need a program to be reached while it runs."""
    return NotServed(
        "the HTTP routes answer when a program has ended; to watch it, talk to it or leave it running, use gRPC: "
        "LocalSandboxManager(address=...) with the address of a daemon, or MS_ENCLAVE_ADDRESS"
    )


def no_contexts() -> NotServed:
    """Makes the error for contexts with names."""
    return NotServed(
        "the HTTP routes know one context for each sandbox; to open others, use gRPC: "
        "LocalSandboxManager(address=...) with the address of a daemon, or MS_ENCLAVE_ADDRESS"
    )


def no_lifecycle() -> NotServed:
    """Makes the error for what changes a sandbox that exists."""
    return NotServed(
        "the HTTP routes create, stop and delete sandboxes; to pause, change or watch one, use gRPC: "
        "LocalSandboxManager(address=...) with the address of a daemon, or MS_ENCLAVE_ADDRESS"
    )


def no_pools() -> NotServed:
    """Makes the error for all that the one pool of a server does not have."""
    return NotServed(
        "the HTTP routes know one plain pool; for more, for warm ones and for claims, use gRPC: "
        "LocalSandboxManager(address=...) with the address of a daemon, or MS_ENCLAVE_ADDRESS"
    )


class UnservedExecutions:
    """Executions over HTTP: every call raises `NotServed`."""

    def follow(self, call: ToolCall) -> ExecutionFollower:
        raise no_streams()

    async def start_detached(self, call: ToolCall) -> ExecutionFollower:
        raise no_streams()

    def attach(
        self,
        execution_id: str,
        sandbox_id: str,
        offsets: Mapping[Channel, int],
        *,
        observe: bool = False,
        stats_interval: float | None = None,
    ) -> ExecutionFollower:
        raise no_streams()

    async def cancel(self, execution_id: str, sandbox_id: str) -> None:
        raise no_streams()

    async def signal(self, execution_id: str, sandbox_id: str, number: int, *, leader_only: bool = False) -> None:
        raise no_streams()

    async def get(self, execution_id: str, sandbox_id: str = "") -> ExecutionInfo:
        raise no_streams()

    async def list(self, sandbox_id: str, *, running: bool | None = None) -> list[ExecutionInfo]:
        raise no_streams()

    async def wait(self, execution_id: str, sandbox_id: str, wait_s: float) -> ExecutionInfo:
        raise no_streams()


class UnservedContexts:
    """Contexts over HTTP: every call raises `NotServed`."""

    async def open(self, sandbox_id: str, name: str) -> ContextInfo:
        raise no_contexts()

    async def list(self, sandbox_id: str) -> list[ContextInfo]:
        raise no_contexts()

    async def close(self, sandbox_id: str, name: str) -> None:
        raise no_contexts()

    async def reset(self, sandbox_id: str, name: str) -> ContextInfo:
        raise no_contexts()


class UnservedLifecycle:
    """The life of sandboxes over HTTP: every call raises `NotServed`."""

    async def find(self, wanted: SandboxFilter) -> SandboxListing:
        raise no_lifecycle()

    async def history(self, sandbox_id: str) -> list[StateChange]:
        raise no_lifecycle()

    async def watch(
        self, wanted: SandboxFilter, revision: int = 0, *, heartbeat_s: float = 0.0
    ) -> AsyncGenerator[SandboxEvent, None]:
        raise no_lifecycle()
        yield  # makes it a generator, which the Protocol asks for

    async def pause(self, sandbox_id: str) -> SandboxInfo:
        raise no_lifecycle()

    async def resume(self, sandbox_id: str) -> SandboxInfo:
        raise no_lifecycle()

    async def update(self, sandbox_id: str, change: SandboxChange) -> SandboxInfo:
        raise no_lifecycle()


class UnservedPools:
    """Pools over HTTP, beyond the documented routes: every call raises `NotServed`."""

    async def get(self, pool_id: str) -> PoolStats:
        raise no_pools()

    async def leases(self, pool_id: str, most: int) -> list[Lease]:
        raise no_pools()

    async def list(self) -> list[PoolStats]:
        raise no_pools()

    async def update(self, pool_id: str, change: PoolChange) -> PoolStats:
        raise no_pools()

    async def claim(self, pool_id: str, claim: PoolClaim, wait_timeout_s: float | None = None) -> SandboxInfo:
        raise no_pools()
