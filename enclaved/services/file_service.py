"""FileService: works with the files of a sandbox."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from ms_enclave.v1 import file_service_pb2 as pb

from enclaved import log
from enclaved.core.files import Files
from enclaved.errors import InvalidRequest
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context
from enclaved.services._uploads import Upload

DEFAULT_MODE = 0o644
DEFAULT_DIRECTORY_MODE = 0o755
MESSAGE_BYTES = 256 * 1024
"""What one message of a download carries at most: it costs as much as one of 64 KiB."""
UPLOAD_IDLE_S = 30.0
"""A client that sends nothing for so long loses its upload."""


class FileService:
    """Serves ``ms_enclave.v1.FileService``."""

    def __init__(self, files: Files, upload_idle_s: float = UPLOAD_IDLE_S) -> None:
        self._files = files
        self._upload_idle_s = upload_idle_s

    async def read_file(self, request: pb.ReadFileRequest, context: Context) -> None:
        """Reads a regular file as a stream of chunks."""
        reading = self._files.read(
            fields.sandbox_id(request.sandbox_id), request.path, offset=request.offset, length=request.length
        )
        async with reading as chunks:
            async for data in _large(chunks):
                await context.write(pb.ReadFileResponse(data=data))

    async def write_file(self, requests: AsyncIterator[pb.WriteFileRequest], context: Context) -> pb.WriteFileResponse:
        """Writes a regular file from a stream of chunks."""
        upload = Upload(requests, context, self._upload_idle_s)
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
            upload_id=first.open.upload_id,
            offset=first.open.offset,
        )
        return pb.WriteFileResponse(size_bytes=size)

    async def stat_file(self, request: pb.StatFileRequest, context: Context) -> pb.StatFileResponse:
        """Shows what a path is."""
        found = await self._files.stat(fields.sandbox_id(request.sandbox_id), request.path)
        return pb.StatFileResponse(file=convert.file_info(found))

    async def list_directory(self, request: pb.ListDirectoryRequest, context: Context) -> None:
        """Lists a directory as a stream of pages."""
        listing = self._files.list(
            fields.sandbox_id(request.sandbox_id), request.path, recursive=request.recursive, glob=request.glob
        )
        async with listing as pages:
            async for page in pages:
                await context.write(pb.ListDirectoryResponse(files=[convert.file_info(info) for info in page]))

    async def make_directory(self, request: pb.MakeDirectoryRequest, context: Context) -> pb.MakeDirectoryResponse:
        """Makes a directory; one that exists is left as it is."""
        await self._files.make_directory(
            fields.sandbox_id(request.sandbox_id),
            request.path,
            mode=request.mode or DEFAULT_DIRECTORY_MODE,
            create_parents=request.create_parents,
        )
        return pb.MakeDirectoryResponse()

    async def move_file(self, request: pb.MoveFileRequest, context: Context) -> pb.MoveFileResponse:
        """Gives a file, link or directory another path."""
        sandbox_id = fields.sandbox_id(request.sandbox_id)
        await self._files.move(sandbox_id, request.path, request.target_path, replace=request.replace)
        return pb.MoveFileResponse()

    async def copy_file(self, request: pb.CopyFileRequest, context: Context) -> pb.CopyFileResponse:
        """Copies a file, a link or a directory."""
        await self._files.copy(
            fields.sandbox_id(request.sandbox_id),
            request.path,
            request.target_path,
            replace=request.replace,
            recursive=request.recursive,
        )
        return pb.CopyFileResponse()

    async def remove_file(self, request: pb.RemoveFileRequest, context: Context) -> pb.RemoveFileResponse:
        """Removes a file, a link or a directory."""
        await self._files.remove(
            fields.sandbox_id(request.sandbox_id),
            request.path,
            recursive=request.recursive,
            missing_ok=request.missing_ok,
        )
        return pb.RemoveFileResponse()

    async def watch_directory(self, request: pb.WatchDirectoryRequest, context: Context) -> None:
        """Tells what changes in a directory."""
        sandbox_id = fields.sandbox_id(request.sandbox_id)
        async with self._files.watch(sandbox_id, request.path, recursive=request.recursive) as changes:
            async for change in changes:
                await context.write(convert.file_change(change))

    async def search_files(self, request: pb.SearchFilesRequest, context: Context) -> None:
        """Looks for lines in files."""
        searching = self._files.search(
            fields.sandbox_id(request.sandbox_id),
            request.path,
            request.pattern,
            literal=request.literal,
            ignore_case=request.ignore_case,
            glob=request.glob,
            matches_max=request.matches_max,
        )
        async with searching as pages:
            async for page in pages:
                await context.write(convert.search_matches(page))

    async def read_archive(self, request: pb.ReadArchiveRequest, context: Context) -> None:
        """Packs a directory or a file into a tar archive."""
        reading = self._files.read_archive(
            fields.sandbox_id(request.sandbox_id), request.path, gzip=request.gzip, names=request.names
        )
        async with reading as chunks:
            async for data in _large(chunks):
                await context.write(pb.ReadArchiveResponse(data=data))

    async def write_archive(
        self, requests: AsyncIterator[pb.WriteArchiveRequest], context: Context
    ) -> pb.WriteArchiveResponse:
        """Unpacks a tar archive into a directory."""
        upload = Upload(requests, context, self._upload_idle_s)
        first = await upload.receive()
        if first is None or first.WhichOneof("step") != "open":
            raise InvalidRequest.of("open", "must be in the first message")
        log.bind(sandbox_id=first.open.sandbox_id)
        sandbox_id = fields.sandbox_id(first.open.sandbox_id, "open.sandbox_id")
        unpacked = await self._files.write_archive(sandbox_id, first.open.path, upload)
        return pb.WriteArchiveResponse(entries=unpacked.entries, size_bytes=unpacked.size_bytes)


async def _large(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Joins pieces to messages. The next piece of a file is never long in coming."""
    waiting: list[bytes] = []
    size = 0
    async for data in chunks:
        if size + len(data) > MESSAGE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(data)
        size += len(data)
    if waiting:
        yield b"".join(waiting)
