"""The one table from our errors to documented HTTP answers: a status and ``{"detail": text}``."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from fastapi.responses import JSONResponse, Response
from ms_enclave.v1.error_reason_pb2 import ErrorReason
from starlette.requests import ClientDisconnect

from enclaved import errors, status

_log = logging.getLogger(__name__)

STATUS: Final[Mapping[type[errors.EnclaveError], int]] = MappingProxyType(
    {
        errors.InvalidRequest: 400,
        errors.PolicyDenied: 403,
        errors.Unauthenticated: 401,
        errors.NotFound: 404,
        errors.ImageNotFound: 400,
        errors.PoolNotFound: 400,
        errors.SandboxExists: 409,
        errors.WrongState: 409,
        errors.ImageUnusable: 400,
        errors.PathUnusable: 400,
        errors.PathExists: 409,
        errors.UploadGap: 409,
        errors.EngineRefused: 400,
        errors.OffsetReleased: 409,
        errors.LimitReached: 429,
        errors.PoolBusy: 408,
        errors.NoSpace: 413,
        errors.Unavailable: 503,
        errors.SandboxLost: 409,
        errors.NotServed: 400,
    }
)
"""A class without a line of its own uses that of its nearest base."""

ERROR_HEADER: Final = "X-Enclave-Error"
"""Says which error it is, in JSON: the reason and the metadata as on gRPC, and which fields are wrong."""

POOL_IS_EMPTY: Final = "Sandbox pool is empty, call initialize_pool first"

CLIENT_LEFT: Final = 499

_DETAIL_CHARS = 4000
_HEADER_CHARS = 3000
_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "memory_limit_bytes": "memory_limit",
        "working_dir_size_bytes": "resource_limits.working_dir_size",
        "tmp_size_bytes": "resource_limits.tmp_size",
        "pids_limit": "resource_limits.pids_limit",
        "ttl_s": "resource_limits.ttl",
        "idle_timeout_s": "resource_limits.idle_timeout",
        "timeout_s": "timeout",
        "tools": "tools_config",
    }
)
"""Fields of the model under the names that HTTP callers know."""


class Refusal(NamedTuple):
    """What a caller is told."""

    status: int
    detail: str
    headers: Mapping[str, str]


class Refused(Exception):
    """Raised where the answer is already known."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.refusal = Refusal(status, detail, headers or {})


def refusal_of(error: errors.EnclaveError) -> Refusal | None:
    """Finds the answer to an error; ``None`` for a fault of ours."""
    code = next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), None)
    if code is None:
        return None
    headers = {ERROR_HEADER: _named(error)}
    if isinstance(error, errors.LimitReached | errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return Refusal(code, cut(_detail(error)), headers)


def answer_to(error: BaseException) -> Response:
    """Makes the answer to an error. One that nobody foresaw is logged, and its text is not told."""
    match error:
        case Refused():
            refusal: Refusal | None = error.refusal
        case errors.EnclaveError():
            refusal = refusal_of(error)
        case ClientDisconnect():
            return Response(status_code=CLIENT_LEFT)  # for the count; nobody is there to read it
        case _:
            refusal = None
    if refusal is None:
        log_id = secrets.token_hex(8)
        _log.error("request failed by a fault of ours", exc_info=error, extra={"log_id": log_id})
        refusal = Refusal(500, f"internal error; the daemon's log has the details under log_id {log_id}", {})
    return JSONResponse({"detail": refusal.detail}, refusal.status, dict(refusal.headers))


def headers_of(error: errors.EnclaveError) -> Mapping[str, str]:
    """Says in a header which error it is, for an answer with a text of its own."""
    return {ERROR_HEADER: _named(error)}


def cut(text: str) -> str:
    """Bounds a text that may quote its reader, and makes it one that can be sent."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _DETAIL_CHARS else f"{text[: _DETAIL_CHARS - 1]}…"


def _named(error: errors.EnclaveError) -> str:
    reason = ErrorReason.Name(status.row_of(error).reason).removeprefix("ERROR_REASON_")
    found: dict[str, object] = {"reason": reason}
    for name, value in (("metadata", dict(error.metadata)), ("violations", _listed(error))):
        if value and len(json.dumps({**found, name: value})) <= _HEADER_CHARS:
            found[name] = value
    return json.dumps(found)


def _listed(error: errors.EnclaveError) -> list[dict[str, str]]:
    if not isinstance(error, errors.InvalidRequest):
        return []
    return [{"field": v.field, "description": v.description, "reason": v.reason} for v in error.violations]


def _detail(error: errors.EnclaveError) -> str:
    match error:
        case errors.SandboxNotFound():
            return f"Sandbox {error.name} not found"
        case errors.ToolNotFound():
            return f"Tool {error.name} is not available"
        case errors.PoolNotFound():
            return POOL_IS_EMPTY
        case errors.InvalidRequest():
            return "; ".join(_violations(error))
        case _:
            return str(error)


def _violations(error: errors.InvalidRequest) -> Iterator[str]:
    for violation in error.violations:
        first, dot, rest = violation.field.removeprefix("spec.").partition(".")
        yield f"{_FIELDS.get(first, first)}{dot}{rest}: {violation.description}"
