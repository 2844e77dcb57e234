"""Signals that wait until a program runs.

Whoever signals an execution cannot know whether its process has become the program yet. So a standby child lets all
signals wait, and the program meets them with its first step; none of them can hit the preparation instead.
"""

from __future__ import annotations

import signal
import sys

# What the module's own function adds to this one makes an enumeration of dozens of numbers, for longer than all the
# rest of a start takes.
_set_mask = getattr(sys.modules.get("_signal"), "pthread_sigmask", signal.pthread_sigmask)
_ALL = tuple(int(number) for number in signal.valid_signals())


def hold_signals() -> None:
    """Lets all signals wait but those that nothing can hold."""
    _set_mask(signal.SIG_SETMASK, _ALL)


def release_signals() -> None:
    """Lets the signals come that have waited. One with a handler in Python is handled before this returns."""
    _set_mask(signal.SIG_SETMASK, ())


def release_signal(number: int) -> None:
    """Lets one signal come."""
    _set_mask(signal.SIG_UNBLOCK, (number,))
