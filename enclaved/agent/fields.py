"""Takes fields out of what a guest says. All of it is hostile input: a wrong kind of value ends the connection."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from enclaved.agent.guest.frames import FrameError
from enclaved.model import ResourceUsage

_TIME_MAX_S = 1e9
_NUMBER_MAX = 2**62
_TEXT_MAX_BYTES = 1000


def integer(header: Mapping[str, Any], name: str) -> int:
    """Takes a whole number that is not negative out of a header. Raises FrameError if it is anything else."""
    value = header.get(name)
    if type(value) is not int or not 0 <= value < _NUMBER_MAX:
        raise FrameError(f"{name} is no number that it could be")
    return value


def seconds(header: Mapping[str, Any], name: str) -> float:
    """Takes a time out of a header. Raises FrameError if it is none."""
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _TIME_MAX_S:
        raise FrameError(f"{name} is no time that it could be")
    return float(value)


def boolean(header: Mapping[str, Any], name: str) -> bool:
    """Takes true or false out of a header; what is missing is false. Raises FrameError if it is anything else."""
    value = header.get(name, False)
    if not isinstance(value, bool):
        raise FrameError(f"{name} is neither true nor false")
    return value


def string(header: Mapping[str, Any], name: str) -> str:
    """Takes a text out of a header, as far as it is one; what is missing is empty. Raises FrameError otherwise."""
    value = header.get(name, "")
    if not isinstance(value, str):
        raise FrameError(f"{name} is no text")
    return value.encode("utf-8", "replace")[:_TEXT_MAX_BYTES].decode("utf-8", "ignore")


def offsets(header: Mapping[str, Any], channels: Collection[int]) -> dict[int, int]:
    """Takes the position in each of these channels out of a header. Raises FrameError if one is missing."""
    found = header.get("offsets")
    if not isinstance(found, dict):
        raise FrameError("no offsets")
    return {channel: integer(found, str(channel)) for channel in channels}


def usage(header: Mapping[str, Any]) -> ResourceUsage:
    """Takes the resources that an execution uses out of a header; what is missing counts as none.

    Raises FrameError if one is of the wrong kind.
    """
    found = header.get("usage")
    if not isinstance(found, dict):
        raise FrameError("no usage")
    return ResourceUsage(
        cpu_user_s=seconds({"cpu_user_s": 0, **found}, "cpu_user_s"),
        cpu_system_s=seconds({"cpu_system_s": 0, **found}, "cpu_system_s"),
        **{name: integer({name: 0, **found}, name) for name in _COUNTS},
    )


_COUNTS = ("memory_peak_bytes", "io_read_bytes", "io_write_bytes", "memory_bytes", "pids")
