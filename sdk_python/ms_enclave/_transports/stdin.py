"""What goes up into the standard input of a program, kept so long that a lost connection loses none of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from ms_enclave.v1 import execution_service_pb2 as pb

CHUNK_BYTES: Final = 64 * 1024
WAITING_CHUNKS: Final = 4
KEPT_BYTES: Final = 8 * 1024 * 1024
"""More than may be on its way between us and a program: of what was sent, the end that a new stream repeats."""


class Input:
    """The standard input of one execution, over as many streams as it takes."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING_CHUNKS)
        self._kept: deque[pb.Stdin] = deque()
        self._kept_bytes = 0
        self._sent_bytes = 0
        self._ended = False
        self.failure: OSError | None = None
        """Why the source could not be read to its end. The program then saw an early end of its input."""

    async def pump(self) -> None:
        """Reads the source to its end, no faster than the program takes it. Runs beside the streams."""
        try:
            async for data in self._source:
                for start in range(0, len(data), CHUNK_BYTES):
                    await self._waiting.put(data[start : start + CHUNK_BYTES])
        except OSError as error:
            self.failure = error
        await self._waiting.put(None)

    async def requests(self, opening: pb.ExecuteRequest) -> AsyncIterator[pb.ExecuteRequest]:
        """Yields the messages of one stream: ``opening``, what an earlier stream may have lost, then what comes.

        The daemon skips what it has by its offset, and refuses a gap.
        """
        yield opening
        for piece in tuple(self._kept):
            yield pb.ExecuteRequest(stdin=piece)
        while not self._ended:
            data = await self._waiting.get()
            if data is None:
                self._ended = True
            else:
                yield pb.ExecuteRequest(stdin=self._keep(data))
        yield pb.ExecuteRequest(end_of_input=pb.EndOfInput())

    def _keep(self, data: bytes) -> pb.Stdin:
        piece = pb.Stdin(data=data, offset=self._sent_bytes)
        self._sent_bytes += len(data)
        self._kept.append(piece)
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft().data)
        return piece
