"""Checks of single fields that strangers send: ids, numbers, chunks and JSON. What is malformed names its field."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from enclaved.core import policy
from enclaved.errors import InvalidRequest

PARAMETERS_BYTES_MAX = 1024 * 1024
CHUNK_BYTES_MAX = 1024 * 1024
"""Most bytes in one message of input or of a file."""

_INTEGER_CHARS_MAX = 1000


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
        found = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
        )
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = f"is not JSON ({error.msg} at line {error.lineno}, column {error.colno}); send an object such as {{}}"
        raise InvalidRequest.of(field, why) from None
    except UnicodeEncodeError:
        raise InvalidRequest.of(field, "has half a surrogate pair in a string; send whole characters") from None
    except RecursionError:
        raise InvalidRequest.of(field, "is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest.of(field, str(error)) from None
    if not isinstance(found, dict):
        raise InvalidRequest.of(field, "must be a JSON object, such as {}")
    return found


def _is_there(value: str, field: str, required: bool) -> bool:
    if required and not value:
        raise InvalidRequest.of(field, "is missing")
    return bool(value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"has the key {key[:64]!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}, which is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("has a number that is too large for a double")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > _INTEGER_CHARS_MAX:
        raise ValueError(f"has an integer of more than {_INTEGER_CHARS_MAX} digits")
    return int(text)
