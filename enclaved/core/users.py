"""The user ids of sandboxes, and as whom their guests appear on this host."""

from __future__ import annotations

import logging
import random
from typing import Final

from enclaved.errors import LimitReached
from enclaved.runtime.base import Runtime

log = logging.getLogger(__name__)

MAPPED: Final = range(10_000, 60_000)
"""Ids for sandboxes on an engine that maps users: it has 65536, of which images use the low ones themselves."""
_MAPPED_END: Final = 65_535


class Users:
    """Gives each live sandbox of this daemon a user id that no other has."""

    def __init__(self, runtime: Runtime, configured: range) -> None:
        self._runtime = runtime
        self._configured = configured
        self._taken: set[int] = set()
        self._known = False
        self.range = configured
        """The ids that are given out: those of the configuration, or `MAPPED` where the engine does not have them."""
        self.mapped_root: int | None = None
        """As whom guests appear on this host; ``None``: as root, as they do in their sandboxes."""

    @property
    def taken(self) -> frozenset[int]:
        """The ids that are in use."""
        return frozenset(self._taken)

    async def learn(self) -> None:
        """Asks the engine once whether it maps users. Raises `EngineUnavailable`."""
        if self._known:
            return
        info = await self._runtime.info()
        self._known = True
        self.mapped_root = info.mapped_root
        self.range = self._configured
        if info.maps_users and self._configured.stop > _MAPPED_END:
            self.range = MAPPED
            log.info(
                "the engine maps user ids", extra={"root_is": info.mapped_root, "uids": f"{MAPPED[0]}-{MAPPED[-1]}"}
            )

    def forget(self) -> None:
        """The engine may be another one now: it is asked again."""
        self._known = False

    def take(self) -> int:
        """Draws an id. Random, since engines are shared. Raises `LimitReached`."""
        free = len(self.range) - sum(uid in self.range for uid in self._taken)
        if free <= 0:
            text = f"all {len(self.range)} user ids for sandboxes are in use; delete some sandboxes"
            raise LimitReached("daemon", "uids", text)
        while (uid := random.choice(self.range)) in self._taken:  # noqa: S311 - spread, not secrecy
            pass
        self._taken.add(uid)
        return uid

    def fitting(self, uid: int) -> int:
        """Returns an id that the engine has: the one that was drawn before it was known, or another in its place."""
        if uid in self.range or uid not in self._taken:
            return uid
        self.give_back(uid)
        return self.take()

    def take_up(self, uid: int) -> None:
        """Takes the id of a sandbox of an earlier daemon."""
        self._taken.add(uid)

    def give_back(self, uid: int) -> None:
        """Lets another sandbox have an id."""
        self._taken.discard(uid)
