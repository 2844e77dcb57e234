"""Takes fields out of the daemon's frames. What is of another type than it should be ends the connection."""

from __future__ import annotations

from .frames import FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

_TIME_MAX_S = 1e9


def text(header: Dict[str, Any], name: str) -> Optional[str]:
    """A text; None where there is none. Raises FrameError."""
    value = header.get(name)
    if value is not None and not isinstance(value, str):
        raise FrameError("%s is no text: %r" % (name, value))
    return value


def count(header: Dict[str, Any], name: str) -> Optional[int]:
    """A whole number that is not negative; None where there is none. Raises FrameError."""
    value = header.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise FrameError("%s is no number: %r" % (name, value))
    return value


def seconds(header: Dict[str, Any], name: str) -> float:
    """A time; 0 where there is none. Raises FrameError."""
    value = header.get(name) or 0
    if not isinstance(value, (int, float)) or not 0 <= value <= _TIME_MAX_S:
        raise FrameError("%s is no time: %r" % (name, value))
    return float(value)
