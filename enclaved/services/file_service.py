"""FileService: moves files in and out of a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc import aio
from ms_enclave.v1.file_service_pb2 import (
    ReadFileRequest,
    ReadFileResponse,
    WriteFileRequest,
    WriteFileResponse,
)

from enclaved import log
from enclaved.core.files import Files
from enclaved.errors import InvalidRequest
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context

DEFAULT_MODE = 0o644
UPLOAD_IDLE_S = 30.0
"""A client that sends nothing for so long loses its upload."""


class FileService:
    """Serves ``ms_enclave.v1.FileService``."""

    def __init__(self, files: Files, upload_idle_s: float = UPLOAD_IDLE_S) -> None:
        self._files = files
        self._upload_idle_s = upload_idle_s

    async def read_file(self, request: ReadFileRequest, context: Context) -> None:
        """Reads a regular file as a stream of chunks."""
        reading = self._files.read(
            fields.sandbox_id(request.sandbox_id),
            request.path,
            offset=request.offset,
            length=request.length,
        )
        async with reading as chunks:
            async for data in chunks:
                await context.write(ReadFileResponse(data=data))

    async def write_file(self, requests: AsyncIterator[WriteFileRequest], context: Context) -> WriteFileResponse:
        """Writes a regular file from a stream of chunks."""
        upload = _Upload(requests, context, self._upload_idle_s)
        first = await upload.receive()
        if first is None or first.WhichOneof("step") != "open":
            raise InvalidRequest.of("open", "must be in the first message")
        log.bind(sandbox_id=first.open.sandbox_id)
        size = await self._files.write(
            fields.sandbox_id(first.open.sandbox_id, "open.sandbox_id"),
            first.open.path,
            upload,
            mode=first.open.mode or DEFAULT_MODE,
            create_parents=first.open.create_parents,
        )
        return WriteFileResponse(size_bytes=size)


class _Upload:
    """The chunks of an upload, one at a time, each within the idle limit."""

    def __init__(self, requests: AsyncIterator[WriteFileRequest], context: Context, idle_s: float) -> None:
        self._requests = requests
        self._context = context
        self._idle_s = idle_s

    async def receive(self) -> WriteFileRequest | None:
        """Waits for the next message; ``None`` at the end that the client sent."""
        try:
            async with asyncio.timeout(self._idle_s):
                message = await anext(self._requests, None)
        except TimeoutError:
            text = f"the upload sent nothing for {self._idle_s:g} s; what was there before is unchanged"
            await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        if message is None:
            await self._check_end()
        return message

    async def _check_end(self) -> None:
        """Tells the client's end from a cut: gRPC ends the requests of a call that is cut in the same way.

        It says so only a moment later, by cancelling us. But to such a call nothing can be sent any more.
        """
        try:
            await self._context.send_initial_metadata(())
        except aio.BaseError:
            raise asyncio.CancelledError from None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        if message.WhichOneof("step") != "data":
            raise InvalidRequest.of("open", "must be in the first message only; send data after it")
        return fields.chunk(message.data, "data")
