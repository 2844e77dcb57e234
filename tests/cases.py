"""How many cases a test tries that makes them itself: few in every run, 100,000 with ``scripts/test --full``."""

from __future__ import annotations

from hypothesis import settings

FULL = 100_000


def cases(quick: int, full: int = FULL) -> int:
    """Returns how many cases to try now."""
    return full if settings().max_examples >= settings.get_profile("full").max_examples else quick
