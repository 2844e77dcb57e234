"""Pages of listings that fit into a message, however much those who made what is listed wrote into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from google.protobuf.message import Message

PAGE_BYTES: Final = 2 * 1024 * 1024
"""A page ends before it has more, and after one entry at least."""

_PageT = TypeVar("_PageT")
_MessageT = TypeVar("_MessageT", bound=Message)


def fitting(
    size: int, ask: Callable[[int], _PageT], show: Callable[[_PageT], Iterable[_MessageT]]
) -> tuple[_PageT, Sequence[_MessageT]]:
    """Asks for a page of a size, and for a smaller one if what it shows is too large. Raises what ``ask`` raises."""
    page = ask(size)
    shown = [*show(page)]
    room_bytes = PAGE_BYTES
    for count, entry in enumerate(shown):
        room_bytes -= entry.ByteSize()
        if room_bytes < 0 and count:
            return ask(count), shown[:count]
    return page, shown
