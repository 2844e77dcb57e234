"""Our own terminal while a program has it: raw, as large as the window, and given back whatever happens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

import click

from ms_enclave._model import TerminalSize

DETACH_KEYS: Final = b"\x10\x11"
"""Ctrl-P, Ctrl-Q."""


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Lets every key through as it is, also Ctrl-C, until the end of the block."""
    try:
        import termios
        import tty
    except ImportError:
        raise click.UsageError("-t needs a terminal of Linux or macOS") from None
    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)  # without losing what was typed ahead
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, saved)


def size_of(fd: int) -> TerminalSize:
    """Returns how large a terminal is; what cannot be known is as usual."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return TerminalSize()
    usual = TerminalSize()
    return TerminalSize(found.lines or usual.rows, found.columns or usual.columns)


class DetachKeys:
    """Looks for Ctrl-P, Ctrl-Q in what is typed, also where they come apart."""

    def __init__(self) -> None:
        self._held = b""
        self.seen = False
        """Whether they were pressed."""

    def pass_on(self, typed: bytes) -> bytes:
        """Returns what is for the program. A Ctrl-P waits for the key that follows it."""
        data = self._held + typed
        before, found, _ = data.partition(DETACH_KEYS)
        self.seen = bool(found)
        self._held = DETACH_KEYS[:1] if not found and data.endswith(DETACH_KEYS[:1]) else b""
        return before if found else data[: len(data) - len(self._held)]
