"""Reads JSON that strangers sent: no key twice, no NaN or infinity, no half characters, no endless numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any, Final, NoReturn

PARTS_MAX: Final = 20_000
"""Strings, commas and opening brackets of a text. More of them than anybody means would hold up everybody else."""

_INTEGER_CHARS_MAX: Final = 1000
_PART: Final = re.compile(r'[,\[{]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class NotJson(ValueError):
    """The text is no JSON that we take; the message says why. ``position`` is set where the syntax is wrong."""

    def __init__(self, why: str, position: int | None = None) -> None:
        super().__init__(why)
        self.position = position


def loads(text: str) -> Any:
    """Reads one JSON value. Raises `NotJson`."""
    _check_parts(text)
    try:
        found = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = f"is not JSON ({error.msg} at line {error.lineno}, column {error.colno}); send an object such as {{}}"
        raise NotJson(why, error.pos) from None
    except UnicodeEncodeError:
        raise NotJson("has half a surrogate pair in a string; send whole characters") from None
    except RecursionError:
        raise NotJson("is nested too deeply") from None
    return found


def _check_parts(text: str) -> None:
    if len(text) > PARTS_MAX and next(itertools.islice(_PART.finditer(text), PARTS_MAX, None), None) is not None:
        raise NotJson(f"has more than {PARTS_MAX} strings, commas and brackets; put large content into a file")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotJson(f"has the key {key[:64]!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"has {name}, which is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson("has a number that is too large for a double")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > _INTEGER_CHARS_MAX:
        raise NotJson(f"has an integer of more than {_INTEGER_CHARS_MAX} digits")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_distinct,
    parse_constant=_refuse_constant,
    parse_float=_finite_float,
    parse_int=_bounded_int,
)
"""`json.loads` makes one each time where it is told of such hooks."""
