"""Gives memory back that the process has no use for. What a burst of work has taken would stay with it otherwise."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Has the C library return free memory to the system. Blocks for milliseconds; does nothing where it cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
