"""Which way frames take to the guests of an engine: found out by the first sandbox, the canary."""

from __future__ import annotations

import logging
from typing import Final

from enclaved.errors import EngineRefused
from enclaved.metrics import Metrics
from enclaved.model import Channel

_log = logging.getLogger(__name__)

AUTO: Final = "auto"


class Channels:
    """Knows the channel of new sandboxes: the one that is configured, or (``auto``) the one that the engine allows.

    ``auto`` begins with the socket. An engine that does not see the daemon's files refuses the first sandbox; one that
    shows it the files and not the socket, as a virtual machine may, has a guest that says so. That sandbox is then made
    once more, over an attach, and if that goes well so are all others until the daemon ends.
    """

    def __init__(self, wanted: str, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._may_change = wanted == AUTO
        self.known: Channel | None = None
        """The channel that is configured or has worked; None: the first sandbox will show it."""
        self.current = Channel.SOCKET
        """The channel to try next."""
        if not self._may_change:
            self._know(Channel(wanted))

    def other_after(self, error: EngineRefused) -> Channel | None:
        """What to try after the current channel failed; None: nothing, the error stands."""
        if not error.files_unseen or not self._may_change or self.known is not None:
            return None  # what has worked once is not given up because of one image that says otherwise
        _log.warning("engine does not see our files", extra={"reason": error.engine_message[:500]})
        return Channel.ATTACH

    def works(self, channel: Channel) -> None:
        """A guest was reached this way."""
        if self.known is not channel:
            _log.info("channel to guests", extra={"channel": channel.value})
            self._know(channel)

    def _know(self, channel: Channel) -> None:
        self.known = self.current = channel
        if self._metrics is not None:
            self._metrics.engine.channel(channel)
