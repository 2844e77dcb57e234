"""What managers can see of the sandboxes of a daemon: lists by filters, and every change as it happens."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator, Mapping

from ms_enclave._model import SandboxEvent, SandboxFilter, SandboxListing
from ms_enclave._transports.base import Transport


class Looking(abc.ABC):
    """The part of a manager that only looks."""

    _labels: Mapping[str, str]
    """What it puts on every sandbox that it makes."""

    @abc.abstractmethod
    async def _connect(self) -> Transport:
        """Returns the way to the daemon that keeps the sandboxes."""

    async def find_sandboxes(self, wanted: SandboxFilter | None = None) -> SandboxListing:
        """Lists sandboxes of the daemon by labels, status and age, whoever made them; by default those it made itself.

        ``watch_sandboxes(wanted, listing.revision)`` goes on from there without missing anything.
        """
        return await (await self._connect()).lifecycle.find(wanted or SandboxFilter(self._labels))

    async def watch_sandboxes(
        self, wanted: SandboxFilter | None = None, revision: int = 0, *, heartbeat_s: float = 0.0
    ) -> AsyncGenerator[SandboxEvent, None]:
        """Yields every change of sandboxes after a revision (0: from now on), in order and without gaps.

        Begins with a bookmark, and yields another every ``heartbeat_s`` seconds (0: 10) without news. Goes on over
        restarts of the daemon; leaving the loop ends it. By default those that it made itself are watched. Raises
        `RevisionGone` if the daemon does not keep changes from so long ago: list them anew then.
        """
        lifecycle = (await self._connect()).lifecycle
        watch = lifecycle.watch(wanted or SandboxFilter(self._labels), revision, heartbeat_s=heartbeat_s)
        async with contextlib.aclosing(watch) as events:
            async for event in events:
                yield event
