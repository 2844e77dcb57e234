"""The documented enumerations."""

from __future__ import annotations

import enum


class _Documented(enum.StrEnum):
    """A string that prints as ``Class.MEMBER``, as the logs of existing users show it."""

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class SandboxStatus(_Documented):
    """Where a sandbox is in its life."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    IDLE = "idle"
    """Waiting in a pool, or paused."""
    BUSY = "busy"
    """At work in a pool."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    """It died, could not be made, or reached its time to live. It can only be deleted."""


class SandboxType(_Documented):
    """What kind of environment a sandbox is."""

    DOCKER = "docker"
    DOCKER_NOTEBOOK = "docker_notebook"
    VOLCENGINE = "volcengine"
    DUMMY = "dummy"
    """For sandbox classes of your own; see `register_sandbox`."""


class SandboxManagerType(_Documented):
    """How a manager reaches its sandboxes."""

    LOCAL = "local"
    HTTP = "http"
    VOLCENGINE = "volcengine"


class ToolType(_Documented):
    """Where a tool runs."""

    SANDBOX = "sandbox"
    """In the sandbox."""
    FUNCTION = "function"
    """In the process of its caller."""
    EXTERNAL = "external"
    """Elsewhere."""


class ExecutionStatus(_Documented):
    """How an execution ended, in one word. ``metadata["verdict"]`` of a result says it precisely."""

    SUCCESS = "success"
    """It exited with code 0."""
    ERROR = "error"
    TIMEOUT = "timeout"
    """It was killed at its timeout or its idle timeout."""
    CANCELLED = "cancelled"
    """A caller cancelled it."""


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
