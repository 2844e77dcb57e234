"""The input of one execution on its way to the guest: what was sent and not taken, and when there is room for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from enclaved.agent.guest.frames import FrameError
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES, STDIN_WINDOW_BYTES
from enclaved.errors import GuestUnavailable, InvalidRequest

KNOWN_PATIENCE_S = 30.0


class Input:
    """Input in order, each byte once. It is kept until the guest has it for certain."""

    def __init__(self, send: Callable[[int, bytes], None], *, known: bool) -> None:
        self._send = send
        self._kept = bytearray()
        self._base = 0
        """Offset of the first byte that is kept."""
        self._taken = 0
        """Up to where the program has taken it."""
        self.ended = False
        self._over = False
        self._moved = asyncio.Event()
        self._known = asyncio.Event()
        if known:
            self._known.set()

    @property
    def end(self) -> int:
        """The offset of the next byte of input."""
        return self._base + len(self._kept)

    async def write(self, data: bytes, offset: int | None) -> None:
        """Sends input; waits while the program does not read. Bytes that were sent before are skipped."""
        await self.wait_known()
        if offset is not None and offset > self.end and not self._over:
            text = f"{offset} leaves a gap; the next byte wanted is {self.end}"
            raise InvalidRequest.of("stdin.offset", text)
        sent = 0
        while True:
            if offset is not None:  # a client that came back may send what another call of it is still sending
                sent = max(sent, self.end - offset)
            if sent >= len(data) or self._over:  # after the end nobody will read it
                return
            if self.ended:
                raise InvalidRequest.of("stdin", "the end of the input has been sent already")
            if self.end - self._taken < STDIN_WINDOW_BYTES:
                piece = data[sent : sent + MAX_PAYLOAD_BYTES]
                sent += len(piece)
                self._kept += piece
                self._send(self.end - len(piece), piece)
            else:
                self._moved.clear()
                await self._moved.wait()

    async def wait_known(self) -> None:
        """Waits until it is known how much a guest has that an earlier daemon spoke to. Raises `GuestUnavailable`."""
        try:
            if not self._known.is_set():
                async with asyncio.timeout(KNOWN_PATIENCE_S):
                    await self._known.wait()
        except TimeoutError as error:
            raise GuestUnavailable("the guest has not come back yet; send the input again") from error

    def take_up(self, offset: int, ended: bool) -> None:
        """Goes on where the guest stands, which an earlier daemon has sent input to; asks what is taken of that."""
        if not self._known.is_set():
            self._base, self._taken = offset, max(0, offset - STDIN_WINDOW_BYTES - MAX_PAYLOAD_BYTES)
            self.ended = self.ended or ended
            self._known.set()
            if offset:
                self._send(offset, b"")

    def repeat(self) -> None:
        """Sends again what the guest may not have."""
        for start in range(0, len(self._kept), MAX_PAYLOAD_BYTES):
            self._send(self._base + start, bytes(self._kept[start : start + MAX_PAYLOAD_BYTES]))

    def on_taken(self, offset: int) -> None:
        """The program has taken the input up to here. Raises FrameError if it cannot have."""
        if self._over:
            return  # how much an earlier daemon sent to one that has ended is not known
        if not self._taken <= offset <= self.end:
            raise FrameError(f"took input up to {offset}")
        if offset > self._base:
            del self._kept[: offset - self._base]
            self._base = offset
        self._taken = offset
        self._moved.set()

    def close(self) -> None:
        """Nobody reads it any more."""
        self._over = True
        self._known.set()
        self._moved.set()
