"""What a client sends piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import grpc
from ms_enclave.v1.file_service_pb2 import WriteArchiveRequest, WriteFileRequest

from enclaved.errors import InvalidRequest
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context
from enclaved.services._limits import check_end

MessageT = TypeVar("MessageT", WriteFileRequest, WriteArchiveRequest)


class Upload(Generic[MessageT]):
    """The chunks of an upload, one at a time, each within the idle limit."""

    def __init__(self, requests: AsyncIterator[MessageT], context: Context, idle_s: float) -> None:
        self._requests: AsyncIterator[MessageT] = requests
        self._context = context
        self._idle_s = idle_s

    async def receive(self) -> MessageT | None:
        """Waits for the next message; ``None`` at the end that the client sent."""
        try:
            async with asyncio.timeout(self._idle_s):
                message = await anext(self._requests, None)
        except TimeoutError:
            text = f"the upload sent nothing for {self._idle_s:g} s; what was there before is unchanged"
            await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        if message is None:
            await check_end(self._context)
        return message

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        if message.WhichOneof("step") != "data":
            raise InvalidRequest.of("open", "must be in the first message only; send data after it")
        return fields.chunk(message.data, "data")
