"""Everything that the SDK raises on purpose, as one tree.

Every class is a ``RuntimeError``, as creation and execution failures always were, and beside that the built-in
class that describes it best:

    EnclaveError (RuntimeError)
    ├── InvalidRequest (ValueError)          a field or parameter is missing, malformed or out of range
    ├── PolicyDenied (PermissionError)       the operator's policy does not grant what was asked for
    ├── Unauthenticated (PermissionError)    the daemon wants to know who calls
    ├── NotFound (ValueError)
    │   ├── SandboxNotFound
    │   ├── ExecutionNotFound
    │   ├── ToolNotFound
    │   ├── ImageNotFound
    │   ├── PoolNotFound                     call initialize_pool first
    │   └── ContextNotFound                  no context of this name is open in the sandbox
    ├── PathNotFound (FileNotFoundError)     no such file in the sandbox
    ├── SandboxExists (ValueError)
    ├── RequestEnded (ValueError)            the request made a sandbox that is gone
    ├── RevisionGone                         changes since then are not kept any more
    ├── WrongState (ValueError)              the sandbox is in a state in which the call makes no sense
    ├── ImageUnusable
    ├── PathExists (FileExistsError)         something is there already, and was not to be replaced
    ├── UploadGap                            an upload goes on behind what has arrived of it
    ├── PathUnusable (OSError)               a directory or device where a file is needed, or no permission
    ├── EngineRefused                        the container engine said no, and will say no again
    ├── OffsetReleased
    ├── LimitReached                         as many as there may be; worth trying again later
    ├── NoSpace (OSError)
    ├── Unavailable (ConnectionError)        worth trying again; the SDK already did so a few times
    │   ├── EngineUnavailable                the container engine does not answer
    │   ├── GuestUnavailable                 the sandbox does not answer at the moment
    │   ├── TokensUnavailable                the daemon cannot read its tokens
    │   ├── ShuttingDown                     the daemon is stopping
    │   ├── ExecutionUnreachable             an execution cannot be followed any longer; the text says how to go on
    │   └── DaemonUnavailable                no daemon answers at the address
    │       └── DaemonStartFailed            an embedded daemon could not be started
    ├── DeadlineExceeded (TimeoutError)      the daemon did not answer in time
    ├── PoolBusy (TimeoutError)              no sandbox of the pool was free in time
    ├── SandboxLost                          the sandbox died during the call
    ├── NotServed (NotImplementedError)      documented, but not in this version
    └── InternalError                        a fault of ours; the daemon's log has the details

A program that fails in a sandbox is no error but a `ToolResult` that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "ContextNotFound",
    "DaemonStartFailed",
    "DaemonUnavailable",
    "DeadlineExceeded",
    "EnclaveError",
    "EngineRefused",
    "EngineUnavailable",
    "ExecutionNotFound",
    "ExecutionUnreachable",
    "FieldViolation",
    "GuestUnavailable",
    "ImageNotFound",
    "ImageUnusable",
    "InternalError",
    "InvalidRequest",
    "LimitReached",
    "NoSpace",
    "NotFound",
    "NotServed",
    "OffsetReleased",
    "PathExists",
    "PathNotFound",
    "PathUnusable",
    "PolicyDenied",
    "PoolBusy",
    "PoolNotFound",
    "RequestEnded",
    "RevisionGone",
    "SandboxExists",
    "SandboxLost",
    "SandboxNotFound",
    "ShuttingDown",
    "TokensUnavailable",
    "ToolNotFound",
    "Unauthenticated",
    "Unavailable",
    "UploadGap",
    "WrongState",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One malformed field: its path in the request, what is wrong with it, and a stable reason."""

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a status says beside its text."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


class EnclaveError(RuntimeError):
    """Base of every error that the SDK raises on purpose. The text says what to do."""

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        found = details or ErrorDetails()
        self.message = message
        self.metadata = dict(found.metadata)
        """Every variable of the text, for programs; docs/errors.md lists the keys."""
        self.violations = found.violations
        """The fields at fault, where the daemon named them."""
        self.retry_after_s = found.retry_after_s
        """Seconds after which the daemon suggests to try again, where it said so."""


class InvalidRequest(EnclaveError, ValueError):
    """One or more fields or parameters are missing, malformed or out of range; ``violations`` names them."""


class PolicyDenied(EnclaveError, PermissionError):
    """The operator's policy does not grant what was asked for; ``metadata["rule"]`` names the rule."""


class Unauthenticated(EnclaveError, PermissionError):
    """The daemon needs an identity, and the call had none that is valid."""


class NotFound(EnclaveError, ValueError):
    """What the call names is not there, or is not the caller's."""


class SandboxNotFound(NotFound):
    """No such sandbox."""


class ExecutionNotFound(NotFound):
    """No such execution, or its record has been released (60 s after its end)."""


class ToolNotFound(NotFound):
    """No such tool, or it is not enabled in this sandbox."""


class ImageNotFound(NotFound):
    """The image is neither on the engine nor can it be pulled."""


class PoolNotFound(NotFound):
    """No such pool: it was never initialized, or it is gone."""


class ContextNotFound(NotFound):
    """No context of this name is open in the sandbox: never opened, or closed."""


class PathNotFound(EnclaveError, FileNotFoundError):
    """No such file or directory in the sandbox."""


class SandboxExists(EnclaveError, ValueError):
    """A sandbox of this id exists."""


class RequestEnded(EnclaveError, ValueError):
    """The request made a sandbox once, and that is gone; it makes no other."""


class RevisionGone(EnclaveError):
    """Changes of sandboxes since this revision are not kept any more: list them anew and watch from there."""


class WrongState(EnclaveError, ValueError):
    """The sandbox is in a state in which the call makes no sense."""


class ImageUnusable(EnclaveError):
    """The image cannot run as a sandbox (for example, it has no Python)."""


class PathExists(EnclaveError, FileExistsError):
    """Something is at the path in the sandbox already, and it was not to be replaced."""


class UploadGap(EnclaveError):
    """An upload goes on behind what has arrived of it: ``metadata["arrived_bytes"]``."""


class PathUnusable(EnclaveError, OSError):
    """The path in the sandbox is of the wrong kind, or the sandbox's user may not touch it."""


class EngineRefused(EnclaveError):
    """The container engine refused what was asked of it, and asking again will not help."""


class OffsetReleased(EnclaveError):
    """Output at the wanted offset has been released; ``metadata["first_offset"]`` is the first one kept."""


class LimitReached(EnclaveError):
    """There are as many as there may be. Worth trying again after ``retry_after_s``."""


class NoSpace(EnclaveError, OSError):
    """The file system is full, in the sandbox or under the daemon."""


class Unavailable(EnclaveError, ConnectionError):
    """Something that is needed does not answer. The SDK tried a few times before it raised this."""


class EngineUnavailable(Unavailable):
    """The container engine does not answer the daemon."""


class GuestUnavailable(Unavailable):
    """The sandbox does not answer the daemon at the moment."""


class TokensUnavailable(Unavailable):
    """The daemon cannot read its tokens at the moment, so that nobody who needs one can call."""


class ShuttingDown(Unavailable):
    """The daemon is stopping and takes no new work."""


class ExecutionUnreachable(Unavailable):
    """An execution could not be reached again after its connection was lost, within ``MS_ENCLAVE_RECONNECT_S``.

    It may go on without us. ``metadata["execution_id"]`` names it, and `Sandbox.get_execution` takes it up again.
    """


class DaemonUnavailable(Unavailable):
    """No daemon answers at the address that the text names."""


class DaemonStartFailed(DaemonUnavailable):
    """An embedded daemon could not be started; the text ends with what it said."""


class DeadlineExceeded(EnclaveError, TimeoutError):
    """The daemon did not answer within the time that this call may take. Not the timeout of a program."""


class PoolBusy(EnclaveError, TimeoutError):
    """No sandbox of the pool was free within the time that the caller was willing to wait."""


class SandboxLost(EnclaveError):
    """The sandbox died during a call that has no result to carry the news."""


class NotServed(EnclaveError, NotImplementedError):
    """A documented name, field or method that this version does not serve."""


class InternalError(EnclaveError):
    """A fault of ours. ``metadata["log_id"]`` finds it in the daemon's log."""
