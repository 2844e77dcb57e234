"""What goes up to an execution, kept so long that a lost connection loses none of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from ms_enclave import _convert as convert
from ms_enclave._model import Channel, TerminalSize
from ms_enclave.v1 import execution_service_pb2 as pb

CHUNK_BYTES: Final = 64 * 1024
WAITING_CHUNKS: Final = 4
"""How much input may wait here for its turn. Then whoever writes waits."""
KEPT_BYTES: Final = 8 * 1024 * 1024
"""More than may be on its way between us and a program: of what was sent, the end that a new stream repeats."""
ACKNOWLEDGE_BYTES: Final = 64 * 1024
"""How much output is acknowledged at once."""
ACKNOWLEDGE_S: Final = 0.2
"""How long less than that may wait, so that no journal is held full by readers that have read everything."""


class Upward:
    """Input, terminal size and acknowledgements of one execution, over as many streams as it takes, in one loop."""

    def __init__(self, *, knows_offset: bool, acknowledges: bool) -> None:
        """``knows_offset``: the input is ours from its first byte, so that what a stream lost can be repeated.

        ``acknowledges``: the output is released as it is consumed; otherwise not at all.
        """
        self._knows_offset = knows_offset
        self._kept: deque[pb.Stdin] = deque()
        self._kept_bytes = 0
        self._first = 0
        """Number of the first piece kept; pieces are numbered from 0 on."""
        self._next_to_send = 0
        self._next_offset = 0
        self._ended = False
        self._size: pb.TerminalSize | None = None
        self._resized = False
        self._acknowledges = acknowledges
        self._manual = False
        self._consumed: dict[Channel, int] = {}
        self._unacknowledged_bytes = 0
        self._told = False
        """Whether the present stream carried an acknowledgement."""
        self._received_bytes = 0
        """How much the present stream brought."""
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    def moved(self) -> Upward:
        """Returns the same for another event loop."""
        other = Upward(knows_offset=self._knows_offset, acknowledges=self._acknowledges)
        other._kept, other._kept_bytes, other._first = self._kept, self._kept_bytes, self._first
        other._next_to_send, other._next_offset = self._next_to_send, self._next_offset
        other._ended, other._size, other._manual = self._ended, self._size, self._manual
        other._consumed = self._consumed
        return other

    # -- for callers ---------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Takes up input. Waits while more is on its way than the program takes."""
        for start in range(0, len(data), CHUNK_BYTES):
            while self._unsent >= WAITING_CHUNKS:
                self._room.clear()
                await self._room.wait()
            self._keep(data[start : start + CHUNK_BYTES])
            self._changed.set()

    def end_input(self) -> None:
        """Says that no more input comes."""
        self._ended = True
        self._changed.set()

    @property
    def input_ended(self) -> bool:
        """Whether no more input comes."""
        return self._ended

    def resize(self, size: TerminalSize) -> None:
        """Takes up the terminal's size; only the last one counts. Raises `InvalidRequest`."""
        self._size = convert.terminal_size(size)
        self._resized = True
        self._changed.set()

    def acknowledge(self, offsets: Mapping[Channel, int]) -> None:
        """Releases output below these offsets. From now on only this does. Raises `InvalidRequest`."""
        convert.offsets(offsets)
        self._manual = True
        self._consumed.update(offsets)
        self._unacknowledged_bytes = ACKNOWLEDGE_BYTES
        self._changed.set()

    def consumed(self, channel: Channel, offset: int, size_bytes: int) -> None:
        """Notes that the reader has what lies below ``offset``."""
        if not self._acknowledges or self._manual:
            return
        self._consumed[channel] = offset
        first, self._unacknowledged_bytes = not self._unacknowledged_bytes, self._unacknowledged_bytes + size_bytes
        if first or self._unacknowledged_bytes >= ACKNOWLEDGE_BYTES:
            self._changed.set()

    def received(self, size_bytes: int) -> None:
        """Notes that a stream brought output.

        A daemon takes what it wrote into a connection for received until it is acknowledged for the first time. So
        that is done early, even if the reader has consumed nothing yet; but not at once, since to write into a stream
        that is about to end makes gRPC lose what is in it.
        """
        self._received_bytes += size_bytes
        if self._acknowledges and not self._told and self._received_bytes >= ACKNOWLEDGE_BYTES:
            self._changed.set()

    # -- for streams ---------------------------------------------------------------------------------------------

    async def requests(self) -> AsyncGenerator[pb.ExecuteRequest, None]:
        """Yields the messages of one stream after its first: what an earlier one may have lost, then what comes.

        The daemon skips input that it has by its offset, and refuses a gap. Never ends by itself.
        """
        self._next_to_send = self._first
        self._resized = self._size is not None
        self._told, self._received_bytes = False, 0
        end_told = False
        while True:
            if self._resized:
                self._resized = False
                yield pb.ExecuteRequest(resize=self._size)
            elif self._unsent:
                yield pb.ExecuteRequest(stdin=self._send())
            elif self._ended and not end_told:
                end_told = True
                yield pb.ExecuteRequest(end_of_input=pb.EndOfInput())
            elif self._due or not await self._something():
                yield self._acknowledgement()

    @property
    def _due(self) -> bool:
        first = self._acknowledges and not self._told and self._received_bytes >= ACKNOWLEDGE_BYTES
        return first or self._unacknowledged_bytes >= ACKNOWLEDGE_BYTES

    async def _something(self) -> bool:
        """Waits for something to send. False if it is time to acknowledge."""
        self._changed.clear()
        try:
            async with asyncio.timeout(ACKNOWLEDGE_S if self._unacknowledged_bytes else None):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _acknowledgement(self) -> pb.ExecuteRequest:
        self._unacknowledged_bytes, self._told = 0, True
        return pb.ExecuteRequest(acknowledge=pb.Acknowledge(offsets=convert.offsets(self._consumed)))

    @property
    def _unsent(self) -> int:
        return self._first + len(self._kept) - self._next_to_send

    def _keep(self, data: bytes) -> None:
        piece = pb.Stdin(data=data)
        if self._knows_offset:
            piece.offset = self._next_offset
        self._next_offset += len(data)
        self._kept.append(piece)
        self._kept_bytes += len(data)

    def _send(self) -> pb.Stdin:
        piece = self._kept[self._next_to_send - self._first]
        self._next_to_send += 1
        most = KEPT_BYTES if self._knows_offset else 0
        while self._kept_bytes > most and self._first < self._next_to_send:
            self._kept_bytes -= len(self._kept.popleft().data)
            self._first += 1
        self._room.set()
        return piece
