"""Turns the answer of a failed HTTP call into one of our errors.

A daemon of ours says in a header, beside the documented ``detail``, which error it is. Other servers that speak the
documented routes do not; for them the status code and the documented texts decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from ms_enclave import _status as status
from ms_enclave import errors
from ms_enclave.errors import EnclaveError, ErrorDetails, FieldViolation

BY_STATUS: Final[dict[int, type[EnclaveError]]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthenticated,
    403: errors.PolicyDenied,
    404: errors.NotFound,
    408: errors.PoolBusy,
    409: errors.SandboxExists,
    413: errors.InvalidRequest,
    422: errors.InvalidRequest,
    429: errors.LimitReached,
    500: errors.InternalError,
    501: errors.NotServed,
    502: errors.DaemonUnavailable,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
    507: errors.NoSpace,
}
"""For an answer that does not say which error it is."""

ERROR_HEADER: Final = "X-Enclave-Error"
"""JSON: the reason of the error, its metadata and its field violations, as on gRPC."""

_BY_TEXT: Final[tuple[tuple[re.Pattern[str], type[EnclaveError]], ...]] = (
    (re.compile(r"Sandbox pool is empty"), errors.PoolNotFound),
    (re.compile(r"Sandbox .*is not active"), errors.WrongState),
    (re.compile(r"[Ss]andbox (\S+ )?not found"), errors.SandboxNotFound),
    (re.compile(r"Tool .* is not available"), errors.ToolNotFound),
)
_TEXT_SHOWN_MAX = 100


def error_of(code: int, body: bytes, headers: Mapping[str, str], *, url: str) -> EnclaveError:
    """Makes the error for an answer: its status code, its body and its headers."""
    answer = _json(body)
    detail = answer.get("detail") if isinstance(answer, dict) else None
    if detail is None or (code == 404 and detail == "Not Found") or 300 <= code < 400:
        return _not_ours(code, body, url)
    found = BY_STATUS.get(code, errors.InternalError if code >= 500 else EnclaveError)
    message, violations = _message(detail)
    named = _mapping(_json(headers.get(ERROR_HEADER, "")))
    if named.get("reason"):
        found = status.BY_REASON.get(str(named["reason"]), found)
    elif code in (400, 404, 409):
        found = next((error for pattern, error in _BY_TEXT if pattern.search(message)), found)
    if named:
        listed = [_mapping(one) for one in _list(named.get("violations"))]
        violations = tuple(
            FieldViolation(str(v.get("field", "")), str(v.get("description", "")), str(v.get("reason", "")))
            for v in listed
        )
    metadata = {str(name): str(value) for name, value in _mapping(named.get("metadata")).items()}
    return found(message, ErrorDetails(metadata, violations, _retry_after_s(headers)))


def _not_ours(code: int, body: bytes, url: str) -> EnclaveError:
    if code in (401, 403):
        return errors.Unauthenticated(f"{url} wants to know who calls (status {code}); give an api_key")
    if code == 413:
        return errors.InvalidRequest(f"{url} takes no body of this size (status 413)")
    text = " ".join(body[:_TEXT_SHOWN_MAX].decode("utf-8", "replace").split())
    said = f"status {code}: {text}" if text else f"status {code}"
    if code in (502, 503, 504):
        return errors.DaemonUnavailable(f"no daemon answers behind {url} ({said})")
    return errors.DaemonUnavailable(f"what answers at {url} is no ms-enclave server ({said}); correct base_url")


def _message(detail: object) -> tuple[str, tuple[FieldViolation, ...]]:
    """Reads the documented ``detail``: a text, or a list of what is wrong with which field."""
    if not isinstance(detail, list):
        return str(detail), ()
    found = []
    for entry in map(_mapping, detail):
        # The first part says where the field is: in the query, the path or the body.
        place = ".".join(str(part) for part in _list(entry.get("loc"))[1:])
        found.append(FieldViolation(place, str(entry.get("msg", entry)), str(entry.get("type", ""))))
    return "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in found), tuple(found)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _json(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
