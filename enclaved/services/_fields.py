"""Checks of single fields that strangers send: ids, numbers, chunks and JSON. What is malformed names its field."""

from __future__ import annotations

import math
from typing import Any

from enclaved import strict_json
from enclaved.core import policy
from enclaved.errors import InvalidRequest

PARAMETERS_BYTES_MAX = 1024 * 1024
CHUNK_BYTES_MAX = 1024 * 1024
"""Most bytes in one message of input or of a file."""


def sandbox_id(value: str, field: str = "sandbox_id", *, required: bool = True) -> str:
    """Checks the id of a sandbox."""
    if _is_there(value, field, required):
        policy.check_id(value, field)
    return value


def execution_id(value: str, field: str = "execution_id", *, required: bool = True) -> str:
    """Checks the id of an execution."""
    if _is_there(value, field, required):
        policy.check_execution_id(value, field)
    return value


def context_name(value: str, field: str = "name") -> str:
    """Checks the name of a context."""
    if _is_there(value, field, required=True):
        policy.check_context_name(value, field)
    return value


def amount(value: float, field: str) -> float:
    """Checks a number of seconds: finite, 0 or more."""
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest.of(field, f"must be a finite number, 0 or more, is {value}")
    return value


def not_negative(value: int, field: str) -> int:
    """Checks an offset or a length."""
    if value < 0:
        raise InvalidRequest.of(field, f"must not be negative, is {value}")
    return value


def chunk(data: bytes, field: str) -> bytes:
    """Checks a piece of input or of a file."""
    if len(data) > CHUNK_BYTES_MAX:
        raise InvalidRequest.of(field, f"has {len(data)} bytes; send at most {CHUNK_BYTES_MAX} in one message")
    return data


def json_object(text: str, field: str) -> dict[str, Any]:
    """Reads a JSON object strictly: no key twice, no NaN or infinity, no half characters, at most 1 MiB."""
    size = len(text.encode())
    if size > PARAMETERS_BYTES_MAX:
        why = f"has {size} bytes, more than {PARAMETERS_BYTES_MAX}; put larger content into a file (FileService)"
        raise InvalidRequest.of(field, why)
    try:
        found = strict_json.loads(text)
    except strict_json.NotJson as error:
        raise InvalidRequest.of(field, str(error)) from None
    if not isinstance(found, dict):
        raise InvalidRequest.of(field, "must be a JSON object, such as {}")
    return found


def _is_there(value: str, field: str, required: bool) -> bool:
    if required and not value:
        raise InvalidRequest.of(field, "is missing")
    return bool(value)
