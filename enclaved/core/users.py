"""Engines that map user ids: which ids sandboxes have there, and as whom their guests appear on this host."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from enclaved.agent import acl
from enclaved.core.uids import Uids
from enclaved.errors import EngineUnavailable, InvalidRequest
from enclaved.model import Mount
from enclaved.runtime.base import Runtime

log = logging.getLogger(__name__)

MAPPED: Final = range(10_000, 60_000)
"""Ids for sandboxes on an engine that maps ids: it has 65536, of which images use the low ones themselves."""
_MAPPED_END: Final = 65_535


class Users:
    """What is known of the engine's user ids. Nothing is, before it was asked."""

    def __init__(self, runtime: Runtime, uids: Uids) -> None:
        self._runtime, self._uids = runtime, uids
        self._configured = uids.range
        self._known = False
        self._maps = False
        self._root: int | None = None

    async def learn(self) -> None:
        """Asks the engine once whether it maps ids; then sandboxes get ids that it has. Raises `EngineUnavailable`."""
        if self._known:
            return
        info = await self._runtime.info()
        self._known, self._maps, self._root = True, info.maps_users, info.mapped_root
        fits = not info.maps_users or self._configured.stop <= _MAPPED_END
        self._uids.range = self._configured if fits else MAPPED
        if not fits:
            ids = f"{MAPPED[0]}-{MAPPED[-1]}"
            log.info("the engine maps user ids", extra={"root_is": info.mapped_root, "uids": ids})

    def forget(self) -> None:
        """The engine may be another one now: it is asked again."""
        self._known = False

    def fitting(self, uid: int) -> int:
        """Returns an id that the engine has: the one that was drawn before it was known, or another in its place."""
        if uid in self._uids.range:
            return uid
        self._uids.put_back(uid)
        return self._uids.draw()

    def check_mounts(self, mounts: Iterable[Mount]) -> None:
        """Raises `InvalidRequest` for mounts to write to: their owner is nobody in a sandbox there."""
        writable = [mount.host_path for mount in mounts if not mount.read_only]
        if self._maps and writable:
            text = f"this engine maps user ids, so no sandbox can write to {writable[0]} as its owner; use mode 'ro'"
            raise InvalidRequest.of("spec.volumes", text)

    async def guest_on_host(self, directory: Path) -> int | None:
        """As whom a guest comes to its socket in this directory; ``None``: as root, as it is in its sandbox.

        While the engine is away, whoever could enter the directory before is let in.
        """
        try:
            await self.learn()
        except EngineUnavailable:
            return self._root if self._known else acl.who_may_enter(directory)
        return self._root
