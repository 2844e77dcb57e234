"""Why a daemon cannot start."""

from __future__ import annotations


class StartError(Exception):
    """The daemon cannot start. The text says why and what to do, in one line."""


class StateLocked(StartError):
    """Another daemon uses the state directory."""
