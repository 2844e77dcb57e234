"""Time that does not count, since the daemon has the whole sandbox frozen."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .expiry import Expiry
    from .link import Link
    from .loop import Loop
    from .nursery import Nursery


class Standstill:
    """Stops the clock just before the sandbox is frozen, and starts it again just after."""

    def __init__(self, loop: Loop, link: Link, expiry: Expiry, nursery: Nursery) -> None:
        self.loop, self.link, self.expiry, self.nursery = loop, link, expiry, nursery

    def on_pause(self, header: Dict[str, Any], _: bytes) -> None:
        """The sandbox is about to be frozen."""
        self.loop.stand_still()
        self.link.send({"type": "paused", "number": header["number"]})

    def on_resume(self, *_: object) -> None:
        """The sandbox goes on."""
        self.end()

    def end(self) -> None:
        """Lets time count again: so the daemon says, or it is gone and has the sandbox frozen no more."""
        self.loop.go_on()
        self.expiry.look_again()
        self.nursery.progress_at = time.monotonic()  # children that are being made could not get ready
