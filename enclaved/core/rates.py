"""How often somebody may do something: a bucket of turns for each identity, filled again as time goes by."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

IDENTITIES_MAX: Final = 4096
"""Identities that are remembered. One that was not seen for longest is forgotten first, and starts anew."""
MINUTE_S: Final = 60.0
ROUNDING: Final = 1e-4
"""What may be missing of a turn: who waited as long as we said has it, however sums of seconds were rounded."""


class Rates:
    """Counts what each identity does, so many times in a minute at most, and as many at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds that never go back."""
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Turns that are left, and when that was so."""

    def take(self, name: str, per_minute: int, turns: int = 1) -> float:
        """Takes turns, at most a minute's. Returns 0, or the seconds until there are so many; then none was taken.

        0 a minute: any.
        """
        if not per_minute:
            return 0.0
        now = self._clock()
        left, then = self._buckets.pop(name, (float(per_minute), now))
        left = min(float(per_minute), left + (now - then) * per_minute / MINUTE_S)
        wanted = float(min(turns, per_minute))
        has_turns = left >= wanted - ROUNDING
        self._buckets[name] = (max(0.0, left - wanted) if has_turns else left, now)
        if len(self._buckets) > IDENTITIES_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if has_turns else (wanted - left) * MINUTE_S / per_minute
