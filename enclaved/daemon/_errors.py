"""Why a daemon cannot start."""

from __future__ import annotations


class StartError(Exception):
    """The daemon cannot start. The text says why and what to do, in one line."""


class Unprotected(StartError):
    """Protections do not work here. The text names them, says what was seen and how to do without."""


class StateLocked(StartError):
    """Another daemon uses the state directory."""
