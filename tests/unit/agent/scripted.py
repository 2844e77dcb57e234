"""A guest that says whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.guest.limits import PROTOCOL_VERSION

PATIENCE_S = 60.0
Frame = tuple[dict[str, Any], bytes]

HELLO = {"type": "hello", "version": PROTOCOL_VERSION, "sandbox": "box", "python": "3.11.2"}


class FakeGuest:
    """Whoever connects to the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._decoder = reader, writer, FrameDecoder()
        self._frames: list[Frame] = []

    def say(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        self.say_bytes(encode_frame({"type": kind, **fields}, payload))

    def say_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    def greet(self, *holds: str, **changes: Any) -> None:
        self.say_bytes(encode_frame({**HELLO, **changes}))
        for execution in holds:
            self.say("holds", execution=execution, state="running")
        self.say("ready")

    def introduce(self, *frames: dict[str, Any]) -> None:
        """Greets, says some frames in between, and is ready."""
        for header in (HELLO, *frames, {"type": "ready"}):
            self.say_bytes(encode_frame(dict(header)))

    async def hear(self) -> Frame:
        """The next frame of the daemon."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._frames:
                data = await self._reader.read(65536)
                assert data, "the daemon hung up"
                self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def hear_of(self, kind: str) -> Frame:
        """The next frame of a type."""
        while True:
            header, payload = await self.hear()
            if header["type"] == kind:
                return header, payload

    async def silence(self) -> None:
        """Makes sure that the daemon has said nothing else up to now, but whose output may go."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self._listens(), 0.02)
        self._frames = [frame for frame in self._frames if frame[0]["type"] != "may_go"]
        assert self._frames == []

    async def _listens(self) -> None:
        while True:
            data = await self._reader.read(65536)
            assert data, "the daemon hung up"
            self._frames += self._decoder.feed(data)

    async def hung_up(self) -> None:
        """Waits until the daemon has dropped the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                while await self._reader.read(65536):
                    pass

    async def leave(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
