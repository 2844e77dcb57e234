"""Everything that the daemon refuses or fails to do, as one tree.

    EnclaveError
    ├── InvalidRequest            a field is missing, malformed or out of range
    ├── PolicyDenied              the operator's policy does not grant it
    ├── Unauthenticated           the listener needs an identity
    ├── NotFound
    │   ├── SandboxNotFound
    │   ├── ExecutionNotFound
    │   ├── ToolNotFound
    │   ├── ImageNotFound
    │   ├── PathNotFound
    │   ├── PoolNotFound
    │   └── ContextNotFound
    ├── SandboxExists
    ├── RequestEnded              the request made a sandbox that is gone
    ├── RevisionGone              changes since then are not kept any more
    ├── WrongState                the object is in a state in which the call makes no sense
    │   ├── ImageUnusable
    │   ├── PathUnusable
    │   └── EngineRefused
    ├── OffsetReleased
    ├── LimitReached              as many as there may be; worth trying again later
    ├── PoolBusy                  no member of a pool was free in time
    ├── NoSpace
    ├── Unavailable               worth trying again soon
    │   ├── EngineUnavailable
    │   ├── GuestUnavailable
    │   ├── TokensUnavailable
    │   └── ShuttingDown
    ├── SandboxLost
    └── NotServed                 documented, but not in this version

Each class carries the values of its message in attributes. ``status.py`` has the one table from here to gRPC; a
program that fails in a sandbox is no error but a verdict (``model.Finished``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One malformed field: its path in the request, what is wrong and what to do."""

    field: str
    description: str
    reason: str = "INVALID"
    """``TOOL_REFUSED`` where a tool was asked well-formed nonsense ("No code provided"), which the documented API
    answers with a failed result instead of an exception. Goes into ``BadRequest.FieldViolation.reason``."""


class EnclaveError(Exception):
    """Base of every error that the daemon raises on purpose. The text tells the user what to do."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Every variable of the text, for programs (``ErrorInfo.metadata``)."""
        return {}


class InvalidRequest(EnclaveError):
    """One or more fields are missing, malformed or out of range."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequest:
        """Makes the error for one field."""
        return cls(FieldViolation(field, description))


class PolicyDenied(EnclaveError):
    """The operator's policy does not grant what was asked for. Decided before anything is looked up."""

    def __init__(self, rule: str, field: str, message: str, limit: str = "") -> None:
        super().__init__(f"{message} (policy rule: {rule})")
        self.rule, self.field, self.limit = rule, field, limit

    @property
    def metadata(self) -> Mapping[str, str]:
        found = {"rule": self.rule, "field": self.field}
        return {**found, "limit": self.limit} if self.limit else found


class Unauthenticated(EnclaveError):
    """The listener needs an identity, and the call had none that is valid."""


class NotFound(EnclaveError):
    """What the call names is not there, or is not the caller's."""

    resource_type = ""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class SandboxNotFound(NotFound):
    """No such sandbox."""

    resource_type = "sandbox"

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(sandbox_id, f"sandbox {sandbox_id!r} not found; ListSandboxes shows those there are")


class ExecutionNotFound(NotFound):
    """No such execution, or its record has been released."""

    resource_type = "execution"

    def __init__(self, execution_id: str) -> None:
        super().__init__(execution_id, f"execution {execution_id!r} not found; records of ended ones are kept for 60 s")


class ToolNotFound(NotFound):
    """No such tool, or it is not enabled in this sandbox."""

    resource_type = "tool"

    def __init__(self, tool: str, available: tuple[str, ...]) -> None:
        names = ", ".join(available) if available else "none"
        super().__init__(tool, f"tool {tool!r} not found or not enabled in this sandbox; available: {names}")
        self.available = available

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"tool": self.name, "available": ",".join(self.available)}


class ImageNotFound(NotFound):
    """The image is neither on the engine nor can it be pulled."""

    resource_type = "image"

    def __init__(self, image: str, hint: str) -> None:
        super().__init__(image, f"image {image!r} not found: {hint}")

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"image": self.name}


class PathNotFound(NotFound):
    """No such file or directory in the sandbox."""

    resource_type = "file"

    def __init__(self, path: str) -> None:
        super().__init__(path, f"no such file or directory in the sandbox: {path!r}")

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"path": self.name}


class PoolNotFound(NotFound):
    """No such pool: never made, or deleted."""

    resource_type = "pool"

    def __init__(self, pool_id: str) -> None:
        super().__init__(pool_id, f"pool {pool_id!r} not found; initialize it first")


class ContextNotFound(NotFound):
    """No context of this name is open in the sandbox."""

    resource_type = "context"

    def __init__(self, name: str, sandbox_id: str) -> None:
        super().__init__(
            name, f"context {name!r} is not open in sandbox {sandbox_id!r}; ListContexts shows those that are"
        )


class SandboxExists(EnclaveError):
    """A sandbox of this id exists."""

    def __init__(self, sandbox_id: str, why: str = "") -> None:
        text = (
            f"sandbox {sandbox_id!r} exists already{f' ({why})' if why else ''}; choose another id or delete it first"
        )
        super().__init__(text)
        self.sandbox_id = sandbox_id

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"sandbox_id": self.sandbox_id}


class RequestEnded(EnclaveError):
    """The request made a sandbox once, and that is gone; it makes no other."""

    def __init__(self, request_id: str, sandbox_id: str) -> None:
        text = (
            f"request {request_id!r} made sandbox {sandbox_id!r}, which is gone; use another request_id for another one"
        )
        super().__init__(text)
        self.request_id, self.sandbox_id = request_id, sandbox_id

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"request_id": self.request_id, "sandbox_id": self.sandbox_id}


class RevisionGone(EnclaveError):
    """Changes since a revision are not kept any more, or it was never given out."""

    def __init__(self, revision: int, newest: int) -> None:
        text = (
            f"changes after revision {revision} are not known (any more); list the sandboxes anew and watch from there"
        )
        super().__init__(text)
        self.revision, self.newest = revision, newest

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"revision": str(self.revision), "newest": str(self.newest)}


class WrongState(EnclaveError):
    """The object is in a state in which the call makes no sense."""

    def __init__(self, subject: str, state: str, wanted: str, message: str) -> None:
        super().__init__(message)
        self.subject, self.state, self.wanted = subject, state, wanted

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"state": self.state, "wanted": self.wanted}


class ImageUnusable(WrongState):
    """The image cannot run as a sandbox. With ``lacks_python`` it could with an interpreter that the guest brings."""

    def __init__(self, image: str, why: str, *, lacks_python: bool = False) -> None:
        super().__init__(image, "unusable", "usable", f"image {image!r} cannot run as a sandbox: {why}")
        self.image, self.lacks_python = image, lacks_python

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"image": self.image}


class PathUnusable(WrongState):
    """The path is of the wrong kind, or the sandbox's user may not touch it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why, "a usable path", f"{path!r}: {why}")
        self.path = path

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"path": self.path}


class PathExists(EnclaveError):
    """Something is there already, where a file should be put that replaces nothing."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} exists already; choose another path, remove it first, or set `replace` for a file")
        self.path = path

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"path": self.path}


class UploadGap(EnclaveError):
    """An upload goes on behind what has arrived of it."""

    def __init__(self, path: str, arrived_bytes: int) -> None:
        super().__init__(f"of the upload to {path!r} {arrived_bytes} bytes have arrived; go on from there")
        self.path, self.arrived_bytes = path, arrived_bytes

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"path": self.path, "arrived_bytes": str(self.arrived_bytes)}


class EngineRefused(WrongState):
    """The engine refused what was asked of it, and asking again will not help.

    With ``files_unseen`` it does not see the daemon's files: a sandbox without mounts may do.
    """

    def __init__(self, operation: str, engine_message: str, *, files_unseen: bool = False) -> None:
        super().__init__(
            "engine", "refused", "accepted", f"the container engine refused to {operation}: {engine_message}"
        )
        self.engine_message, self.files_unseen = engine_message, files_unseen

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"engine_message": self.engine_message}


class OffsetReleased(EnclaveError):
    """Output at the wanted offset has been released, or was never written."""

    def __init__(self, channel: str, offset: int, first_offset: int) -> None:
        super().__init__(f"{channel}: offset {offset} is not kept; the first kept offset is {first_offset}")
        self.channel, self.offset, self.first_offset = channel, offset, first_offset

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"channel": self.channel, "first_offset": str(self.first_offset)}


class LimitReached(EnclaveError):
    """There are as many as there may be. Worth trying again after ``retry_after_s``."""

    def __init__(self, subject: str, limit: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.subject, self.limit, self.retry_after_s = subject, limit, retry_after_s

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"limit": self.limit}


class PoolBusy(EnclaveError):
    """No member of a pool was free in time. Worth trying again after ``retry_after_s``."""

    def __init__(self, pool_id: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.pool_id, self.retry_after_s = pool_id, retry_after_s

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"pool_id": self.pool_id}


class NoSpace(EnclaveError):
    """The file system is full, in the sandbox or under the daemon."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"path": self.path}


class Unavailable(EnclaveError):
    """Something that is needed does not answer at the moment. Worth trying again after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineUnavailable(Unavailable):
    """The container engine does not answer."""

    def __init__(self, engine: str, message: str) -> None:
        super().__init__(message)
        self.engine = engine

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"engine": self.engine}


class GuestUnavailable(Unavailable):
    """The sandbox's guest is not connected at the moment."""


class TokensUnavailable(Unavailable):
    """Nobody can show who they are at the moment."""

    def __init__(self) -> None:
        super().__init__(
            "the daemon cannot read its tokens at the moment; try again, or have its operator look at its log"
        )


class ShuttingDown(Unavailable):
    """The daemon is stopping and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down; try again when it is back")


class SandboxLost(EnclaveError):
    """The sandbox died during a call that has no verdict to carry the news."""

    def __init__(self, sandbox_id: str, why: str) -> None:
        super().__init__(f"sandbox {sandbox_id!r} was lost: {why}")
        self.sandbox_id, self.why = sandbox_id, why

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"sandbox_id": self.sandbox_id}


class NotServed(EnclaveError):
    """A documented field or method that this version does not serve yet."""

    def __init__(self, feature: str) -> None:
        super().__init__(f"{feature} is not served by this version of the daemon; leave it out")
        self.feature = feature

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"feature": self.feature}
