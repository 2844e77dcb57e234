"""Keeps the end of what a guest writes to standard error. There is no log driver, so attaching is the only way."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream

from enclaved.runtime.base import STDERR_TAIL_BYTES

_log = logging.getLogger(__name__)


class Tail:
    """The last `STDERR_TAIL_BYTES` of a stream. Implements `StderrTail`."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.ended = asyncio.Event()
        """Set when there will be no more: the guest ended, or the connection broke."""

    def add(self, data: bytes) -> None:
        """Takes in the next piece."""
        self._kept += data
        del self._kept[:-STDERR_TAIL_BYTES]

    def text(self) -> str:
        """See `StderrTail.text`."""
        return self._kept.decode("utf-8", "replace")


class Attachment:
    """An attachment to a container's standard error. `close` it whatever happened, also if `open` did not return."""

    def __init__(self, container: DockerContainer) -> None:
        self.tail = Tail()
        self._stream = container.attach(stderr=True)
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Attaches and starts reading. Raises what aiodocker raises; a connection that breaks later only ends it."""
        await self._stream.__aenter__()
        self._reading = asyncio.create_task(_read(self._stream, self.tail), name="standard error of a guest")

    async def close(self) -> None:
        """Ends the reading and the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        # aiodocker asserts a connection that the engine may have closed by now.
        with suppress(AssertionError):
            await self._stream.close()


async def _read(stream: Stream, tail: Tail) -> None:
    try:
        while (message := await stream.read_out()) is not None:
            tail.add(message.data)
    except (aiodocker.DockerError, aiohttp.ClientError, OSError) as error:
        _log.debug("standard error of a guest broke off", extra={"error": str(error)})
    finally:
        tail.ended.set()
