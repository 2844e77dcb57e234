"""What comes out of a sandbox: as a whole, or file by file in an archive, of which only what was asked for is taken."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final

from ms_enclave.errors import DaemonUnavailable, InvalidRequest, Unavailable

NAME_BYTES_MAX: Final = 64 * 1024
ATTEMPTS: Final = 3
"""How often something is asked for as a whole, if the connection is lost in the middle."""
_BLOCK: Final = 512


async def anew(fetch: Callable[[Callable[[int], object]], Awaitable[bytes]]) -> bytes:
    """Fetches something, and again from its beginning if the connection is lost in the middle.

    ``fetch`` gets what it is to call with the bytes that have come. If none have, it has tried again itself.
    """
    for attempts_left in reversed(range(ATTEMPTS)):
        come: list[int] = []
        try:
            return await fetch(come.append)
        except Unavailable:
            if not any(come) or not attempts_left:
                raise
    raise AssertionError("the last attempt returns or raises")


async def whole(read: Callable[[], AsyncGenerator[bytes, None]], bytes_max: int, hint: str) -> bytes:
    """Reads all there is. Raises `InvalidRequest` with ``hint`` for more than so many bytes."""

    async def fetch(began: Callable[[int], object]) -> bytes:
        data = bytearray()
        async with contextlib.aclosing(read()) as pieces:
            async for piece in pieces:
                if not data:
                    began(len(piece))
                data += piece
                if len(data) > bytes_max:
                    raise InvalidRequest(hint)
        return bytes(data)

    return await anew(fetch)


class Received:
    """The regular files of an archive, one after the other."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._left = 0
        """Bytes of the present file, and of its padding, that nobody has read."""

    async def next(self) -> tuple[str, int] | None:
        """Goes to the next file; returns its name and size, or ``None`` at the end.

        Raises `InvalidRequest` for what no archive of ours has, `DaemonUnavailable` for one that is cut.
        """
        async for _ in self._taken(self._left):
            pass
        name: str | None = None
        while True:
            block = await self._read(_BLOCK)
            if not block.strip(b"\0"):
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise _nonsense(str(error)) from None
            if header.type == tarfile.GNUTYPE_LONGNAME and 0 <= header.size <= NAME_BYTES_MAX:
                text = await self._read(header.size + -header.size % _BLOCK)
                name = os.fsdecode(text[: header.size].split(b"\0", 1)[0])
                continue
            if not header.isreg() or header.size < 0:
                raise _nonsense(f"an entry of type {header.type!r}")
            self._left = header.size + -header.size % _BLOCK
            return header.name if name is None else name, header.size

    async def content(self, size: int) -> AsyncGenerator[bytes, None]:
        """Yields the content of the present file, which has this size."""
        async for data in self._taken(size):
            yield data

    async def _read(self, size: int) -> bytes:
        self._left = size
        return b"".join([data async for data in self._taken(size)])

    async def _taken(self, size: int) -> AsyncIterator[bytes]:
        while size:
            if not self._rest:
                try:
                    self._rest = await anext(self._pieces)
                except StopAsyncIteration:
                    raise DaemonUnavailable("the archive of the sandbox ended too early; try again") from None
            data, self._rest = self._rest[:size], self._rest[size:]
            size -= len(data)
            self._left -= len(data)
            if data:
                yield data


def _nonsense(why: str) -> InvalidRequest:
    return InvalidRequest(f"the sandbox sent an archive that was not asked for: {why}")
