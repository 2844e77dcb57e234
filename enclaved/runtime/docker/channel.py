"""A guest's standard input and output as a stream of bytes, over an attach that the engine turned into a connection."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream

_STDOUT: Final = 1
_log = logging.getLogger(__name__)


class AttachedChannel:
    """`ByteChannel` over an attach. `close` it whatever happened, also if `open` did not return."""

    def __init__(self, container: DockerContainer) -> None:
        self._stream: Stream = container.attach(stdin=True, stdout=True)

    async def open(self) -> None:
        """Attaches. Raises what aiodocker raises; a connection that breaks later only ends the stream."""
        await self._stream.__aenter__()

    async def read(self) -> bytes:
        """See `ByteChannel.read`. The engine has cut the stream into messages; their borders mean nothing."""
        try:
            while (message := await self._stream.read_out()) is not None:
                if message.stream == _STDOUT and message.data:
                    return message.data
        except (aiodocker.DockerError, aiohttp.ClientError, OSError) as error:
            _log.debug("channel to a guest broke off", extra={"error": str(error)})
        return b""

    async def write(self, data: bytes) -> None:
        """See `ByteChannel.write`."""
        # aiodocker asserts a connection that the engine may have closed by now.
        with suppress(AssertionError, aiohttp.ClientError, OSError):
            await self._stream.write_in(data)

    async def close(self) -> None:
        """Ends the connection. The guest's input stays open."""
        with suppress(AssertionError):
            await self._stream.close()
