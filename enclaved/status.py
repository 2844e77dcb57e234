"""The one table from our errors to ``google.rpc.Status``, used by every edge. docs/errors.md is its prose.

Every status carries an ``ErrorInfo`` (domain, stable reason, metadata), and what helps to react: which fields are
wrong, which object is missing, which state or limit stands in the way, when to try again. A status travels in HTTP/2
trailers, which clients limit to 8 KiB, so texts and lists are cut to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from ms_enclave.v1 import error_reason_pb2
from ms_enclave.v1.error_reason_pb2 import ErrorReason

from enclaved import errors

DOMAIN: Final = "enclaved.ms-enclave"

_TEXT_BYTES = 900
_VALUE_BYTES = 300
_STATUS_BYTES = 3000


class Row(NamedTuple):
    """How one class of errors looks on the wire."""

    code: int
    """Number of the gRPC status code."""
    reason: ErrorReason.ValueType
    """Goes into ``ErrorInfo.reason``."""


TABLE: Final[dict[type[errors.EnclaveError], Row]] = {
    errors.InvalidRequest: Row(code_pb2.INVALID_ARGUMENT, error_reason_pb2.ERROR_REASON_INVALID_REQUEST),
    errors.PolicyDenied: Row(code_pb2.PERMISSION_DENIED, error_reason_pb2.ERROR_REASON_POLICY_DENIED),
    errors.Unauthenticated: Row(code_pb2.UNAUTHENTICATED, error_reason_pb2.ERROR_REASON_UNAUTHENTICATED),
    errors.SandboxNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_SANDBOX_NOT_FOUND),
    errors.ExecutionNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_EXECUTION_NOT_FOUND),
    errors.ToolNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_TOOL_NOT_FOUND),
    errors.ImageNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_IMAGE_NOT_FOUND),
    errors.PathNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_FILE_NOT_FOUND),
    errors.PoolNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_POOL_NOT_FOUND),
    errors.ContextNotFound: Row(code_pb2.NOT_FOUND, error_reason_pb2.ERROR_REASON_CONTEXT_NOT_FOUND),
    errors.SandboxExists: Row(code_pb2.ALREADY_EXISTS, error_reason_pb2.ERROR_REASON_SANDBOX_EXISTS),
    errors.RequestEnded: Row(code_pb2.ALREADY_EXISTS, error_reason_pb2.ERROR_REASON_REQUEST_ENDED),
    errors.RevisionGone: Row(code_pb2.OUT_OF_RANGE, error_reason_pb2.ERROR_REASON_REVISION_GONE),
    errors.WrongState: Row(code_pb2.FAILED_PRECONDITION, error_reason_pb2.ERROR_REASON_WRONG_STATE),
    errors.ImageUnusable: Row(code_pb2.FAILED_PRECONDITION, error_reason_pb2.ERROR_REASON_IMAGE_UNUSABLE),
    errors.PathUnusable: Row(code_pb2.FAILED_PRECONDITION, error_reason_pb2.ERROR_REASON_FILE_UNUSABLE),
    errors.EngineRefused: Row(code_pb2.FAILED_PRECONDITION, error_reason_pb2.ERROR_REASON_ENGINE_REFUSED),
    errors.PathExists: Row(code_pb2.ALREADY_EXISTS, error_reason_pb2.ERROR_REASON_FILE_EXISTS),
    errors.UploadGap: Row(code_pb2.OUT_OF_RANGE, error_reason_pb2.ERROR_REASON_UPLOAD_GAP),
    errors.OffsetReleased: Row(code_pb2.OUT_OF_RANGE, error_reason_pb2.ERROR_REASON_OFFSET_RELEASED),
    errors.LimitReached: Row(code_pb2.RESOURCE_EXHAUSTED, error_reason_pb2.ERROR_REASON_LIMIT_REACHED),
    errors.PoolBusy: Row(code_pb2.DEADLINE_EXCEEDED, error_reason_pb2.ERROR_REASON_POOL_BUSY),
    errors.NoSpace: Row(code_pb2.RESOURCE_EXHAUSTED, error_reason_pb2.ERROR_REASON_NO_SPACE),
    errors.EngineUnavailable: Row(code_pb2.UNAVAILABLE, error_reason_pb2.ERROR_REASON_ENGINE_UNAVAILABLE),
    errors.GuestUnavailable: Row(code_pb2.UNAVAILABLE, error_reason_pb2.ERROR_REASON_GUEST_UNAVAILABLE),
    errors.TokensUnavailable: Row(code_pb2.UNAVAILABLE, error_reason_pb2.ERROR_REASON_TOKENS_UNAVAILABLE),
    errors.ShuttingDown: Row(code_pb2.UNAVAILABLE, error_reason_pb2.ERROR_REASON_SHUTTING_DOWN),
    errors.SandboxLost: Row(code_pb2.ABORTED, error_reason_pb2.ERROR_REASON_SANDBOX_LOST),
    errors.NotServed: Row(code_pb2.UNIMPLEMENTED, error_reason_pb2.ERROR_REASON_NOT_IMPLEMENTED),
}
"""A class without a row of its own uses that of its nearest base."""

INTERNAL: Final = Row(code_pb2.INTERNAL, error_reason_pb2.ERROR_REASON_INTERNAL)


def row_of(error: errors.EnclaveError) -> Row:
    """Finds the row of an error; `INTERNAL` for one whose class nobody entered."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), INTERNAL)


def to_status(error: errors.EnclaveError) -> status_pb2.Status:
    """Turns an error into the status that a caller gets."""
    row = row_of(error)
    status = _status(row, str(error), {key: _cut(value, _VALUE_BYTES) for key, value in error.metadata.items()})
    for detail in _details(error):
        packed = status_pb2.Status()
        packed.details.add().Pack(detail)
        if status.ByteSize() + packed.ByteSize() <= _STATUS_BYTES:
            status.MergeFrom(packed)
    return status


def internal_status(log_id: str) -> status_pb2.Status:
    """Makes the status of a fault of ours. It says where to look and nothing else."""
    return _status(
        INTERNAL, f"internal error; the daemon's log has the details under log_id {log_id}", {"log_id": log_id}
    )


def _status(row: Row, text: str, metadata: dict[str, str]) -> status_pb2.Status:
    status = status_pb2.Status(code=row.code, message=_cut(text, _TEXT_BYTES))
    reason = ErrorReason.Name(row.reason).removeprefix("ERROR_REASON_")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    return status


def _details(error: errors.EnclaveError) -> Iterator[Message]:
    """Yields what helps to react to an error, beside its ``ErrorInfo``."""
    match error:
        case errors.InvalidRequest():
            yield _bad_request(error)
        case errors.NotFound():
            yield error_details_pb2.ResourceInfo(
                resource_type=error.resource_type, resource_name=_cut(error.name, _VALUE_BYTES)
            )
        case errors.SandboxExists():
            yield error_details_pb2.ResourceInfo(resource_type="sandbox", resource_name=error.sandbox_id)
        case errors.RequestEnded():
            yield error_details_pb2.ResourceInfo(resource_type="request", resource_name=error.request_id)
        case errors.WrongState():
            violation = error_details_pb2.PreconditionFailure.Violation(
                type="STATE",
                subject=_cut(error.subject, _VALUE_BYTES),
                description=_cut(f"is {error.state}, wanted {error.wanted}", _VALUE_BYTES),
            )
            yield error_details_pb2.PreconditionFailure(violations=[violation])
        case errors.LimitReached():
            yield _quota_failure(error.subject, f"limit: {error.limit}")
            yield _retry_info(error.retry_after_s)
        case errors.NoSpace():
            yield _quota_failure(error.path, "no space left")
        case errors.PoolBusy() | errors.Unavailable():
            yield _retry_info(error.retry_after_s)


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    """Names as many fields as fit."""
    found = error_details_pb2.BadRequest()
    for violation in error.violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _VALUE_BYTES),
            description=_cut(violation.description, _VALUE_BYTES),
            reason=violation.reason,
        )
        if found.ByteSize() + entry.ByteSize() > _STATUS_BYTES - 2 * _TEXT_BYTES:
            break
        found.field_violations.append(entry)
    return found


def _quota_failure(subject: str, description: str) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=_cut(subject, _VALUE_BYTES), description=_cut(description, _VALUE_BYTES)
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info


def _cut(text: str, limit_bytes: int) -> str:
    """Cuts a text to so many bytes of UTF-8; what is not UTF-8 at all is replaced."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
