"""Turns the status of a failed call into one of our errors: the mirror of the daemon's table.

Details that this version does not know are skipped, and a reason that it does not know falls back to the status
code, so that an older SDK understands a newer daemon.
"""

from __future__ import annotations

from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from ms_enclave import errors
from ms_enclave.errors import EnclaveError, ErrorDetails, FieldViolation
from ms_enclave.v1.error_reason_pb2 import ErrorReason

DOMAIN: Final = "enclaved.ms-enclave"
TOOL_REFUSED: Final = "TOOL_REFUSED"
"""Reason of a field violation where a tool was asked well-formed nonsense, such as to run no code."""

BY_REASON: Final[dict[str, type[EnclaveError]]] = {
    "INVALID_REQUEST": errors.InvalidRequest,
    "POLICY_DENIED": errors.PolicyDenied,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "SANDBOX_NOT_FOUND": errors.SandboxNotFound,
    "EXECUTION_NOT_FOUND": errors.ExecutionNotFound,
    "TOOL_NOT_FOUND": errors.ToolNotFound,
    "IMAGE_NOT_FOUND": errors.ImageNotFound,
    "FILE_NOT_FOUND": errors.PathNotFound,
    "SANDBOX_EXISTS": errors.SandboxExists,
    "REQUEST_ENDED": errors.RequestEnded,
    "REVISION_GONE": errors.RevisionGone,
    "WRONG_STATE": errors.WrongState,
    "IMAGE_UNUSABLE": errors.ImageUnusable,
    "FILE_UNUSABLE": errors.PathUnusable,
    "FILE_EXISTS": errors.PathExists,
    "UPLOAD_GAP": errors.UploadGap,
    "OFFSET_RELEASED": errors.OffsetReleased,
    "LIMIT_REACHED": errors.LimitReached,
    "NO_SPACE": errors.NoSpace,
    "ENGINE_UNAVAILABLE": errors.EngineUnavailable,
    "GUEST_UNAVAILABLE": errors.GuestUnavailable,
    "TOKENS_UNAVAILABLE": errors.TokensUnavailable,
    "SHUTTING_DOWN": errors.ShuttingDown,
    "SANDBOX_LOST": errors.SandboxLost,
    "NOT_IMPLEMENTED": errors.NotServed,
    "ENGINE_REFUSED": errors.EngineRefused,
    "INTERNAL": errors.InternalError,
    "POOL_NOT_FOUND": errors.PoolNotFound,
    "POOL_BUSY": errors.PoolBusy,
    "CONTEXT_NOT_FOUND": errors.ContextNotFound,
}
"""One class for each value of the proto's ``ErrorReason`` that is ever sent."""

BY_CODE: Final[dict[int, type[EnclaveError]]] = {
    code_pb2.INVALID_ARGUMENT: errors.InvalidRequest,
    code_pb2.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    code_pb2.NOT_FOUND: errors.NotFound,
    code_pb2.ALREADY_EXISTS: errors.SandboxExists,
    code_pb2.PERMISSION_DENIED: errors.PolicyDenied,
    code_pb2.RESOURCE_EXHAUSTED: errors.LimitReached,
    code_pb2.FAILED_PRECONDITION: errors.WrongState,
    code_pb2.ABORTED: errors.SandboxLost,
    code_pb2.OUT_OF_RANGE: errors.OffsetReleased,
    code_pb2.UNIMPLEMENTED: errors.NotServed,
    code_pb2.INTERNAL: errors.InternalError,
    code_pb2.UNAVAILABLE: errors.DaemonUnavailable,
    code_pb2.UNAUTHENTICATED: errors.Unauthenticated,
}
"""For a status without a reason that we know: not from a daemon of ours, or from a newer one."""


def error_of(code: int, message: str, details_bin: bytes = b"") -> EnclaveError:
    """Makes the error for a status: its numeric code, its text and the bytes of ``grpc-status-details-bin``."""
    status = _parsed(details_bin)
    found: type[EnclaveError] = BY_CODE.get(code, EnclaveError)
    reason, metadata = _reason(status)
    found = BY_REASON.get(reason, found)
    return found(message or _name(code), ErrorDetails(metadata, _violations(status), _retry_after_s(status)))


def is_tool_refusal(error: EnclaveError) -> bool:
    """Says whether a tool refused well-formed nonsense, which the documented API answers with a failed result."""
    return bool(error.violations) and all(violation.reason == TOOL_REFUSED for violation in error.violations)


def reason_names() -> tuple[str, ...]:
    """Lists every reason that a daemon of this version may send."""
    return tuple(name.removeprefix("ERROR_REASON_") for name, number in ErrorReason.items() if number)


def _parsed(details_bin: bytes) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(details_bin)
    except DecodeError:
        return status_pb2.Status()


def _reason(status: status_pb2.Status) -> tuple[str, dict[str, str]]:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if _unpack(detail, info) and info.domain == DOMAIN:
            return info.reason, dict(info.metadata)
    return "", {}


def _violations(status: status_pb2.Status) -> tuple[FieldViolation, ...]:
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if _unpack(detail, request):
            return tuple(FieldViolation(v.field, v.description, v.reason) for v in request.field_violations)
    return ()


def _retry_after_s(status: status_pb2.Status) -> float | None:
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if _unpack(detail, info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None


def _unpack(detail: any_pb2.Any, target: Message) -> bool:
    """Reads a detail into ``target`` if it is of that type; a malformed one is skipped like an unknown one."""
    try:
        return detail.Unpack(target)
    except DecodeError:
        return False


def _name(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else f"status {code}"
