"""What every mapping needs: texts, JSON, numbers and times."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ms_enclave._model.config import is_unicode
from ms_enclave.errors import InternalError, InvalidRequest

PARAMETERS_LIMIT_BYTES = 1024 * 1024


def text(value: str, field: str) -> str:
    """Returns a text that can be sent. Raises `InvalidRequest` naming ``field`` for any other."""
    if not is_unicode(value):
        raise InvalidRequest(f"{field}: contains text that is not valid Unicode (a lone surrogate)")
    return value


def to_json(value: Mapping[str, Any], field: str) -> str:
    """Writes parameters or options as JSON text.

    Raises `InvalidRequest` for what JSON cannot say (objects, NaN, text that is no valid Unicode), naming the entry at
    fault (``parameters.timeout``), and for more than 1 MiB.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        why = f"cannot be written as JSON: {error}"
        if isinstance(error, UnicodeEncodeError):
            why = "contains text that is not valid Unicode (a lone surrogate)"
        raise InvalidRequest(f"{_at_fault(value, field)}: {why}") from None
    if size_bytes > PARAMETERS_LIMIT_BYTES:
        raise InvalidRequest(
            f"{field}: {size_bytes} bytes are more than the limit of {PARAMETERS_LIMIT_BYTES}; "
            "put the content into a file with put_file() and have the program read it"
        )
    return text


def _at_fault(value: Mapping[str, Any], field: str) -> str:
    """Names the first entry that cannot be written as JSON text."""
    for name, item in value.items():
        try:
            json.dumps({name: item}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            return f"{field}.{name}" if isinstance(name, str) and is_unicode(name) else field
    return field


def plain_number(value: float) -> int | float:
    """Returns a whole number as an int, so that it prints as people write it."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def local_time(stamp: Timestamp) -> datetime:
    """Turns a timestamp into the naive local time that the documented models have always had."""
    try:
        return moment(stamp).astimezone().replace(tzinfo=None)
    except (OverflowError, ValueError):  # at an end of the calendar
        return moment(stamp).replace(tzinfo=None)


def moment(stamp: Timestamp) -> datetime:
    """Reads a timestamp of a daemon. Raises `InternalError` for one that is no moment."""
    try:
        return stamp.ToDatetime(UTC)
    except (OverflowError, ValueError):
        raise InternalError(f"the daemon sent a time that is none ({stamp.seconds} s since 1970)") from None


def from_json(value: str) -> Any:
    """Reads JSON of a daemon. Raises `InternalError` for what is none."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InternalError("the daemon sent text that is no JSON where it should be") from None


def is_offset(value: str) -> bool:
    """Whether a text of a daemon is a number of bytes."""
    return value.isascii() and value.isdecimal() and len(value) < 20


def word(name_of: Callable[[Any], str], number: int, prefix: str) -> str:
    """The name of a value of an enumeration; the number itself where a newer daemon sends one that is not known."""
    try:
        return name_of(number).removeprefix(prefix).lower()
    except ValueError:
        return str(number)
