"""The memory that answers may take together, from the time they are gathered until their clients have taken them.

A whole result can have megabytes, and a client can ask for hundreds of them and read none. Where there is no more room,
answers end early, and say so: what is left out can be had piece by piece, by following the execution.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Final

ANSWERS_MOST_BYTES: Final = 64 * 1024 * 1024
"""Of output; what is made of it to be sent takes about three times as much."""
ALWAYS_BYTES: Final = 64 * 1024
"""Every answer may have this much, and only what is beyond it is counted."""


class AnswerRoom:
    """Room that calls share."""

    def __init__(self, most_bytes: int = ANSWERS_MOST_BYTES) -> None:
        self._left_bytes = most_bytes

    @property
    def left_bytes(self) -> int:
        """How much is free."""
        return self._left_bytes

    def share(self) -> None:
        """Lets this task, and those that it begins, take room; all of it is given back when this one is done."""
        task = asyncio.current_task()
        if task is not None:
            share = _Share(self)
            _share.set(share)
            task.add_done_callback(share.give_back)

    def move(self, change_bytes: int) -> bool:
        """Takes room, or gives it back; takes nothing and returns ``False`` where there is too little."""
        if change_bytes > self._left_bytes:
            return False
        self._left_bytes -= change_bytes
        return True


class _Share:
    """What one call has taken."""

    def __init__(self, room: AnswerRoom) -> None:
        self._room = room
        self._free_bytes = ALWAYS_BYTES
        self._taken_bytes = 0

    def take(self, size_bytes: int) -> bool:
        free_bytes = min(size_bytes, self._free_bytes)
        if not self._room.move(size_bytes - free_bytes):
            return False
        self._free_bytes -= free_bytes
        self._taken_bytes += size_bytes - free_bytes
        return True

    def give_back(self, _: object) -> None:
        self._room.move(-self._taken_bytes)
        self._taken_bytes = 0


_share: contextvars.ContextVar[_Share | None] = contextvars.ContextVar("enclaved_answer", default=None)


def take(size_bytes: int) -> bool:
    """Takes room for a part of this call's answer; ``False`` where there is none, and the answer must end."""
    share = _share.get()
    return share is None or share.take(size_bytes)
