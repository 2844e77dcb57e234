"""HTTP/2 by hand, for what no well-behaved client sends."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from tests.service.daemons import PATIENCE_S

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE: Final = 4


class Frame(NamedTuple):
    """What the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Http2:
    """One connection. What is read is kept by nobody; no window is opened unless a test does so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, path: str, window: int | None = None) -> Http2:
        """Connects to a unix socket and says hello; ``window``: how much of an answer each stream takes."""
        client = cls(*await asyncio.open_unix_connection(path))
        settings = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        client.write(PREFACE)
        client.frame(SETTINGS, 0, 0, settings)
        return client

    def write(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self._writer.write(data)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Sends a frame."""
        self.write(encoded(kind, flags, stream, payload))

    def begin(self, stream: int, method: str, more: Iterable[tuple[str, str]] = ()) -> None:
        """Begins a call, such as of ``/ms_enclave.v1.SystemService/GetInfo``."""
        self.frame(HEADERS, END_HEADERS, stream, packed(call_headers(method, more)))

    def message(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Sends a message of a call."""
        self.frame(DATA, END_STREAM if end else 0, stream, b"\0" + struct.pack(">I", len(data)) + data)

    def reset(self, stream: int) -> None:
        """Takes a call back."""
        self.frame(RST_STREAM, 0, stream, struct.pack(">I", 8))

    async def drain(self) -> None:
        """Waits until the server takes what was sent."""
        async with asyncio.timeout(PATIENCE_S):
            await self._writer.drain()

    async def frames(self) -> AsyncIterator[Frame]:
        """Yields what the server sends, until it closes the connection."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    head = await self._reader.readexactly(9)
                    payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            yield Frame(head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF, payload)

    async def until(self, kind: int, stream: int | None = None, flag: int = 0) -> Frame | None:
        """Waits for a frame of a kind; ``None`` if the server closes before."""
        async for frame in self.frames():
            if frame.kind == kind and stream in (None, frame.stream) and frame.flags & flag == flag:
                return frame
        return None

    async def closed(self) -> None:
        """Waits until the server closes."""
        async for _ in self.frames():
            pass

    async def close(self) -> None:
        """Closes our end."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def encoded(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as it travels."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


@asynccontextmanager
async def connection(path: str, window: int | None = None) -> AsyncIterator[Http2]:
    """A connection for as long as the block runs."""
    client = await Http2.open(path, window)
    try:
        yield client
    finally:
        await client.close()


def call_headers(method: str, more: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """The headers of a call."""
    fixed = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    return [*fixed.items(), ("content-type", "application/grpc"), ("te", "trailers"), *more]


def packed(headers: Iterable[tuple[str, str]]) -> bytes:
    """Packs headers as literals, without any table."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    data = text.encode()
    length = len(data)
    if length < 127:
        return bytes((length,)) + data
    found, length = bytearray((127,)), length - 127
    while length >= 128:
        found.append(length % 128 + 128)
        length //= 128
    return bytes(found) + bytes((length,)) + data
