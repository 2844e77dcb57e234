"""Our own standard streams as bytes, for an event loop: a slow reader or writer keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

READ_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 4096
"""What a pipe that is said to be writable takes without making us wait (POSIX's PIPE_BUF on Linux)."""


async def read(fd: int) -> AsyncIterator[bytes]:
    """Yields what can be read, as it comes, to the end. Raises ``OSError`` if that is impossible."""
    while True:
        if not select.select([fd], [], [], 0)[0]:
            loop = asyncio.get_running_loop()
            await _until_ready(fd, loop.add_reader, loop.remove_reader)
        data = os.read(fd, READ_BYTES)
        if not data:
            return
        yield data


async def write(fd: int, data: bytes) -> None:
    """Writes all of it. Raises ``BrokenPipeError`` when nobody reads any more."""
    left = memoryview(data)
    while left:
        if not select.select([], [fd], [], 0)[1]:
            loop = asyncio.get_running_loop()
            await _until_ready(fd, loop.add_writer, loop.remove_writer)
        left = left[os.write(fd, left[:WRITE_BYTES]) :]


def is_open(fd: int) -> bool:
    """Says whether the process was given this stream."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_terminal(fd: int) -> bool:
    """Says whether a person sits at the other end."""
    return is_open(fd) and os.isatty(fd)


async def _until_ready(fd: int, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
