"""Connections to the daemon's sockets for clients that do not keep to any protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_CONNECT_S: Final = 5.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


@asynccontextmanager
async def connection(path: Path | None, data: bytes) -> AsyncIterator[None]:
    """Opens a connection to a unix socket, sends bytes, and closes it after the block. Raises `OSError`.

    The other end may hang up at any time.
    """
    if path is None:
        raise ConnectionError("no unix socket of the daemon is known")
    async with asyncio.timeout(_CONNECT_S):
        _, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        yield
    finally:
        writer.transport.abort()


async def http_status(path: Path | None, data: bytes) -> str:
    """Sends bytes to a unix socket and returns the status that comes back; ``closed`` if none does."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(path)
    except (OSError, TypeError):
        return "unreachable"
    try:
        writer.write(data)
        answer = await reader.read(4096)
    except OSError:
        return "closed"
    finally:
        writer.transport.abort()
    found = _STATUS.match(answer)
    return found[1].decode() if found else "closed"
