"""Reads files of the operator that may have become something else: endless, or a pipe into which nobody writes."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path
from typing import Final

PIPE_S: Final = 2.0
"""How long to wait for what comes through a pipe or from a device; regular files are there at once."""
_PIECE_BYTES: Final = 64 * 1024


def read_file(path: Path, most_bytes: int) -> bytes:
    """Reads a file, and no more of it than ``most_bytes + 1``.

    Raises `OSError` where it cannot be read, or does not end in time, and `ValueError` for a path that is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        until = time.monotonic() + PIPE_S
        found = bytearray()
        while len(found) <= most_bytes:
            if not is_regular:
                _wait(descriptor, until)
            piece = os.read(descriptor, min(_PIECE_BYTES, most_bytes + 1 - len(found)))
            if not piece:
                break
            found += piece
        return bytes(found)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, until: float) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError(0, f"it is no regular file, and did not end within {PIPE_S:g} s")
