"""The end of a sandbox that nobody removes."""

from __future__ import annotations

import os
import time

from .limits import EXPIRY_MARGIN_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .loop import Loop, Timer


class Expiry:
    """Ends the guest a while after its time to live, should the daemon not have done so.

    That time goes on while the clock of the loop stands still.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.end = 0.0  # real monotonic time
        self.timer: Optional[Timer] = None

    def expire_in(self, seconds: float) -> None:
        """Says how long there is to live from now on."""
        self.end = time.monotonic() + seconds + EXPIRY_MARGIN_S
        self.look_again()

    def look_again(self) -> None:
        """Waits for the end anew, after the clock of the loop has stood still."""
        self.loop.cancel(self.timer)
        self.timer = self.loop.after(max(0.0, self.end - time.monotonic()), self.expire)

    def expire(self) -> None:
        """The daemon should have removed this sandbox by now."""
        os._exit(0)
