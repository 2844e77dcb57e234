"""The numbers of sandboxes, user and group of their programs: one for each, drawn from a range."""

from __future__ import annotations

import random

from enclaved.errors import LimitReached


class Uids:
    """Knows which ids of a range are taken. A sandbox that runs as somebody outside the range has one as its group."""

    def __init__(self, first: int, count: int) -> None:
        self.range = range(first, first + count)
        self._taken: set[int] = set()

    @property
    def taken(self) -> frozenset[int]:
        """The ids that are taken."""
        return frozenset(self._taken)

    def draw(self) -> int:
        """Takes one that is free. Random, since engines are shared. Raises `LimitReached`."""
        if len(self._taken) >= len(self.range):
            text = f"all {len(self.range)} user ids for sandboxes are in use; delete some sandboxes"
            raise LimitReached("daemon", "uids", text)
        while (uid := random.choice(self.range)) in self._taken:  # noqa: S311 - spread, not secrecy
            pass
        self._taken.add(uid)
        return uid

    def take(self, uid: int) -> None:
        """Takes the id of a sandbox of an earlier daemon. One outside the range is nobody's to take."""
        if uid in self.range:
            self._taken.add(uid)

    def put_back(self, uid: int) -> None:
        """Lets another sandbox have an id."""
        self._taken.discard(uid)
