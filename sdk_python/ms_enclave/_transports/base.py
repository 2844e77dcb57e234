"""The seam between the documented objects and a daemon. Everything above it is written once, for every transport.

Methods speak the documented models and raise `ms_enclave.errors`; no wire type passes. Each has a time limit of its
own, repeats what is safe to repeat while the daemon does not answer, and may be called from any event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ms_enclave._model import (
    Channel,
    ContextInfo,
    Event,
    ExecutionInfo,
    ExecutionOptions,
    Finished,
    HealthCheckResult,
    SandboxInfo,
    TerminalSize,
    ToolInfo,
    ToolResult,
)
from ms_enclave._model.config import DockerSandboxConfig
from ms_enclave._model.files import FileChange, FileInfo, SearchResult
from ms_enclave._model.pools import PoolOptions
from ms_enclave._transports.life_calls import LifecycleCalls, SandboxChange, SandboxEvents
from ms_enclave._transports.pool_calls import POOL_WAIT_S, PoolCalls

__all__ = [
    "POOL_WAIT_S",
    "ContextCalls",
    "ExecutionCalls",
    "ExecutionFollower",
    "FileCalls",
    "LifecycleCalls",
    "PullProgress",
    "SandboxChange",
    "SandboxEvents",
    "SandboxPlan",
    "ToolCall",
    "Transport",
]


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """A sandbox that somebody wants."""

    sandbox_id: str
    config: DockerSandboxConfig
    tools: Mapping[str, Mapping[str, Any]] | None
    """The daemon's tools to enable, with their options; ``None``: all that it has."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A wish to run one of the daemon's tools."""

    sandbox_id: str
    tool: str
    parameters: Mapping[str, Any]
    timeout_s: float | None = None
    """Seconds that the execution may run, as far as the caller can know; ``None`` or 0: unknown. Decides how long to
    wait for the daemon and nothing else."""
    stdin: AsyncIterator[bytes] | None = None
    """What the program reads from its standard input, for `Transport.stream`; ``None``: an empty input. Asked for the
    next piece when the program took the one before. An ``OSError`` ends the input, and is raised after the program's
    end."""
    options: ExecutionOptions = field(default_factory=ExecutionOptions)
    """How to run it."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far the pull of an image is."""

    layer: str
    """The layer that this is about; empty if about the whole image."""
    status: str
    """What happens to it, in the engine's words."""
    current_bytes: int
    total_bytes: int
    """0 if unknown."""
    image_id: str
    """The image on the engine; only at the end."""


class ExecutionFollower(Protocol):
    """An execution as it is held by one caller, who may use it from one event loop after the other."""

    @property
    def execution_id(self) -> str:
        """Its id."""
        ...

    @property
    def finished(self) -> Finished | None:
        """How it ended, as far as this was seen."""
        ...

    async def start(self) -> None:
        """Makes sure that it exists and is followed. Raises as `Transport.run`."""
        ...

    def hold(self) -> None:
        """Follows it without reading, so that it does not count as left alone."""
        ...

    async def next(self) -> Event | None:
        """Returns the next event, each byte exactly once over all lost connections; ``None`` after the last.

        Raises `ExecutionNotFound`, `OffsetReleased`, `ExecutionUnreachable`.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Sends input; waits while the program does not read. Raises `InvalidRequest`, `WrongState`."""
        ...

    def end_input(self) -> None:
        """Says that no more input comes. Raises as `write`."""
        ...

    def resize(self, size: TerminalSize) -> None:
        """Tells the size of its terminal. Raises as `write`."""
        ...

    def acknowledge(self, offsets: Mapping[Channel, int]) -> None:
        """Releases output; from now on only this does. Raises `InvalidRequest`."""
        ...

    async def close(self) -> None:
        """Lets go of it. It goes on by itself."""
        ...


class ExecutionCalls(Protocol):
    """What can be done with executions while they run."""

    def follow(self, call: ToolCall) -> ExecutionFollower:
        """Returns an execution that starts as soon as it is used. Raises `InvalidRequest`."""
        ...

    async def start_detached(self, call: ToolCall) -> ExecutionFollower:
        """Starts an execution that nobody need follow. Raises as `Transport.run`."""
        ...

    def attach(
        self,
        execution_id: str,
        sandbox_id: str,
        offsets: Mapping[Channel, int],
        *,
        observe: bool = False,
        stats_interval: float | None = None,
    ) -> ExecutionFollower:
        """Returns an execution that exists, to be followed from ``offsets`` on. Raises `InvalidRequest`."""
        ...

    async def cancel(self, execution_id: str, sandbox_id: str) -> None:
        """Kills an execution. Leaves one that has ended alone. Raises `ExecutionNotFound`."""
        ...

    async def signal(self, execution_id: str, sandbox_id: str, number: int, *, leader_only: bool = False) -> None:
        """Sends a signal to its processes. Raises `ExecutionNotFound`, `InvalidRequest`."""
        ...

    async def get(self, execution_id: str, sandbox_id: str = "") -> ExecutionInfo:
        """Describes an execution that runs or ended in the last 60 s. Raises `ExecutionNotFound`."""
        ...

    async def list(self, sandbox_id: str, *, running: bool | None = None) -> list[ExecutionInfo]:
        """Lists them, oldest first. Raises `SandboxNotFound`."""
        ...

    async def wait(self, execution_id: str, sandbox_id: str, wait_s: float) -> ExecutionInfo:
        """Waits for the end for so many seconds at most, and says how it is then. Raises `ExecutionNotFound`."""
        ...


class ContextCalls(Protocol):
    """The persistent interpreters of sandboxes."""

    async def open(self, sandbox_id: str, name: str) -> ContextInfo:
        """Opens a context; leaves an open one alone. Raises `InvalidRequest`, `SandboxNotFound`, `LimitReached`."""
        ...

    async def list(self, sandbox_id: str) -> list[ContextInfo]:
        """Lists those that are open, by name. Raises `SandboxNotFound`."""
        ...

    async def close(self, sandbox_id: str, name: str) -> None:
        """Ends a context with what runs in it. Raises `NotFound`."""
        ...

    async def reset(self, sandbox_id: str, name: str) -> ContextInfo:
        """Gives a context a new interpreter. Raises `NotFound`, `LimitReached`."""
        ...


class FileCalls(Protocol):
    """The files of sandboxes. All raise `PathNotFound`, `PathUnusable`, `InvalidRequest`, `NoSpace`."""

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        """Shows what a path is."""
        ...

    def list(
        self, sandbox_id: str, path: str, *, recursive: bool = False, glob: str = ""
    ) -> AsyncGenerator[FileInfo, None]:
        """Lists a directory, sorted by path."""
        ...

    async def make_directory(self, sandbox_id: str, path: str, *, mode: int, create_parents: bool) -> None:
        """Makes a directory. Raises `PathExists`."""
        ...

    async def move(self, sandbox_id: str, path: str, target_path: str, *, replace: bool) -> None:
        """Gives something another path. Raises `PathExists`."""
        ...

    async def copy(self, sandbox_id: str, path: str, target_path: str, *, replace: bool, recursive: bool) -> None:
        """Copies a file, a link or a directory. Raises `PathExists`."""
        ...

    async def remove(self, sandbox_id: str, path: str, *, recursive: bool, missing_ok: bool) -> None:
        """Removes a file, a link or a directory."""
        ...

    def watch(self, sandbox_id: str, path: str, *, recursive: bool = False) -> AsyncGenerator[FileChange | None, None]:
        """Yields ``None`` once the directory is watched, then what changes."""
        ...

    async def search(
        self,
        sandbox_id: str,
        path: str,
        pattern: str,
        *,
        literal: bool,
        ignore_case: bool,
        glob: str,
        matches_max: int,
    ) -> SearchResult:
        """Looks for lines in files."""
        ...

    def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0, seen: FileInfo | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Reads a file, or ``length`` bytes of it (0: to its end).

        ``seen``: what it was before; if it still is, reading goes on after a lost connection. Raises `PathUnusable` if
        it is not, `Unavailable` without ``seen``.
        """
        ...

    async def upload(
        self,
        sandbox_id: str,
        path: str,
        content: Callable[[int], AsyncIterator[bytes]],
        *,
        mode: int,
        upload_id: str,
    ) -> int:
        """Writes a file, going on where a lost connection cut it. ``content``: its bytes from an offset on."""
        ...

    def read_archive(
        self, sandbox_id: str, path: str, *, gzip: bool = False, names: Sequence[str] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Packs a directory or a file into a tar archive; ``names``: only these files below the directory."""
        ...

    async def write_archive(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]]
    ) -> tuple[int, int]:
        """Unpacks a tar archive; returns how many entries and bytes that made. ``content`` is asked anew."""
        ...


class Transport(Protocol):
    """A way to one daemon. One that cannot do something raises `NotServed`, which says what can."""

    @property
    def address(self) -> str:
        """Where the daemon is, for texts."""
        ...

    @property
    def executions(self) -> ExecutionCalls:
        """Executions while they run."""
        ...

    @property
    def contexts(self) -> ContextCalls:
        """Contexts."""
        ...

    @property
    def lifecycle(self) -> LifecycleCalls:
        """The life of sandboxes."""
        ...

    @property
    def pools(self) -> PoolCalls:
        """Pools."""
        ...

    @property
    def files(self) -> FileCalls:
        """Files."""
        ...

    async def create_sandbox(self, plan: SandboxPlan) -> SandboxInfo:
        """Creates a sandbox and waits until it can run tools.

        Raises `InvalidRequest`, `PolicyDenied`, `ImageNotFound`, `ImageUnusable`, `SandboxExists`, `LimitReached`,
        `EngineUnavailable`, `EngineRefused`.
        """
        ...

    async def get_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Gets one sandbox. Raises `SandboxNotFound`."""
        ...

    async def list_sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        """Lists the sandboxes that carry all of these labels, oldest first."""
        ...

    async def start_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Starts a stopped sandbox again; leaves a running one alone. Raises `SandboxNotFound`, `WrongState`."""
        ...

    async def stop_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Stops a sandbox at once; leaves a stopped one alone. Raises `SandboxNotFound`."""
        ...

    async def delete_sandbox(self, sandbox_id: str, *, wait: bool = True) -> None:
        """Deletes a sandbox with everything in it, for certain; with ``wait`` nothing is left when this returns.

        Raises `SandboxNotFound`.
        """
        ...

    async def list_tools(self, sandbox_id: str = "") -> list[ToolInfo]:
        """Lists the tools enabled in a sandbox, or all of the daemon. Raises `SandboxNotFound`."""
        ...

    async def run(self, call: ToolCall) -> ToolResult:
        """Runs a tool and returns the whole of its result. Cancelling the caller's task kills the execution.

        Raises `InvalidRequest`, `SandboxNotFound`, `ToolNotFound`, `WrongState`, `LimitReached`. A program that fails
        is a result.
        """
        ...

    def stream(self, call: ToolCall) -> AsyncGenerator[Event, None]:
        """Runs a tool and yields what happens while it happens; ends after `Finished`.

        Leaving early kills the execution unless it is detached, as does cancelling the caller's task. Raises as `run`.
        """
        ...

    async def initialize_pool(
        self, pool_id: str, size: int, plan: SandboxPlan, options: PoolOptions | None = None
    ) -> list[str]:
        """Makes a pool and returns its sandboxes' ids when all run; leaves one alone. Raises as `create_sandbox`."""
        ...

    async def run_in_pool(self, pool_id: str, call: ToolCall, *, wait_timeout_s: float | None = None) -> ToolResult:
        """Runs a tool in the next free sandbox of a pool, which is chosen in place of the call's.

        ``wait_timeout_s``: how long to wait for one; 0: not at all; ``None``: `POOL_WAIT_S`. Raises `PoolNotFound`,
        `PoolBusy`, and as `run`.
        """
        ...

    async def delete_pool(self, pool_id: str) -> None:
        """Deletes a pool with its sandboxes. Raises `PoolNotFound`."""
        ...

    def read_file(self, sandbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """Reads a file of a sandbox piece by piece. Raises `PathNotFound`, `PathUnusable`, `InvalidRequest`."""
        ...

    async def write_file(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]], *, mode: int = 0o644
    ) -> int:
        """Writes a file into a sandbox, with missing directories above it, and returns its size in bytes.

        ``content`` is asked anew for each attempt. Raises `PathUnusable`, `NoSpace`, `InvalidRequest`.
        """
        ...

    async def health(self, *, timeout_s: float | None = None) -> HealthCheckResult:
        """Says how the daemon is. With ``timeout_s`` there is one attempt of so many seconds and no other.

        Raises `DaemonUnavailable`, `DeadlineExceeded`.
        """
        ...
