"""The files of sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc.aio

from ms_enclave import _convert as convert
from ms_enclave._convert.files import file_change, file_info, search_match
from ms_enclave._model.files import FileChange, FileInfo, FileType, SearchResult
from ms_enclave._transports.calls import Calls, DaemonStatus, checked
from ms_enclave._transports.channels import Stubs
from ms_enclave.errors import InvalidRequest, PathExists, PathNotFound, PathUnusable, Unavailable, UploadGap
from ms_enclave.v1 import file_service_pb2 as pb

FILE_S: Final = 600.0
"""How long one call may take that moves content."""
WATCH_S: Final = 24 * 3600.0
"""How long a directory is watched by one call."""
_KEPT_BYTES: Final = 4 * 1024 * 1024
"""Much more than the buffers of one message of content have together."""


class Files:
    """Files at the daemon behind ``calls``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        """Shows what a path is."""
        request = pb.StatFileRequest(**_named(sandbox_id, path))
        return file_info((await self._calls.unary(lambda s: s.files.StatFile, request)).file)

    async def list(
        self, sandbox_id: str, path: str, *, recursive: bool = False, glob: str = ""
    ) -> AsyncGenerator[FileInfo, None]:
        """Lists a directory."""
        request = pb.ListDirectoryRequest(
            **_named(sandbox_id, path), recursive=recursive, glob=convert.text(glob, "glob")
        )
        async with contextlib.aclosing(self._stream(lambda s: s.files.ListDirectory, request, FILE_S)) as pages:
            async for page in pages:
                for info in page.files:
                    yield file_info(info)

    async def make_directory(self, sandbox_id: str, path: str, *, mode: int, create_parents: bool) -> None:
        """Makes a directory."""
        request = pb.MakeDirectoryRequest(**_named(sandbox_id, path), mode=_mode(mode), create_parents=create_parents)
        await self._calls.unary(lambda s: s.files.MakeDirectory, request)

    async def move(self, sandbox_id: str, path: str, target_path: str, *, replace: bool) -> None:
        """Gives something another path."""
        target = convert.text(target_path, "target_path")
        request = pb.MoveFileRequest(**_named(sandbox_id, path), target_path=target, replace=replace)
        retries = self._calls.retries()
        try:
            await self._calls.unary(lambda s: s.files.MoveFile, request, timeout_s=FILE_S, retries=retries)
        except PathNotFound:
            if not retries.may_be_done or await self._found(sandbox_id, path) is not None:
                raise
            if await self._found(sandbox_id, target_path) is None:  # otherwise an earlier attempt moved it there
                raise

    async def copy(self, sandbox_id: str, path: str, target_path: str, *, replace: bool, recursive: bool) -> None:
        """Copies a file, a link or a directory."""
        target = convert.text(target_path, "target_path")
        request = pb.CopyFileRequest(
            **_named(sandbox_id, path), target_path=target, replace=replace, recursive=recursive
        )
        retries = self._calls.retries()
        try:
            await self._calls.unary(lambda s: s.files.CopyFile, request, timeout_s=FILE_S, retries=retries)
        except PathExists:
            if not retries.may_be_done:
                raise
            source, made = await self._found(sandbox_id, path), await self._found(sandbox_id, target_path)
            if source is None or made is None or not _is_copy(made, source):
                raise

    async def remove(self, sandbox_id: str, path: str, *, recursive: bool, missing_ok: bool) -> None:
        """Removes a file, a link or a directory."""
        request = pb.RemoveFileRequest(**_named(sandbox_id, path), recursive=recursive, missing_ok=missing_ok)
        retries = self._calls.retries()
        try:
            await self._calls.unary(lambda s: s.files.RemoveFile, request, timeout_s=FILE_S, retries=retries)
        except PathNotFound:
            if not retries.may_be_done:
                raise

    async def _found(self, sandbox_id: str, path: str) -> FileInfo | None:
        try:
            return await self.stat(sandbox_id, path)
        except PathNotFound:
            return None

    async def watch(
        self, sandbox_id: str, path: str, *, recursive: bool = False
    ) -> AsyncGenerator[FileChange | None, None]:
        """Yields ``None`` once the directory is watched, then what changes."""
        request = pb.WatchDirectoryRequest(**_named(sandbox_id, path), recursive=recursive)
        async with contextlib.aclosing(self._stream(lambda s: s.files.WatchDirectory, request, WATCH_S)) as changes:
            async for change in changes:
                yield file_change(change)

    async def search(
        self,
        sandbox_id: str,
        path: str,
        pattern: str,
        *,
        literal: bool,
        ignore_case: bool,
        glob: str,
        matches_max: int,
    ) -> SearchResult:
        """Looks for lines."""
        request = pb.SearchFilesRequest(
            **_named(sandbox_id, path),
            pattern=convert.text(pattern, "pattern"),
            literal=literal,
            ignore_case=ignore_case,
            glob=convert.text(glob, "glob"),
            matches_max=matches_max,
        )
        matches = []
        truncated = False
        async with contextlib.aclosing(self._stream(lambda s: s.files.SearchFiles, request, FILE_S)) as pages:
            async for page in pages:
                matches += [search_match(match) for match in page.matches]
                truncated = truncated or page.truncated
        return SearchResult(tuple(matches), truncated)

    async def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0, seen: FileInfo | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Reads a file or a part of it. After a lost connection it goes on, if the file is as it was ``seen``."""
        request = pb.ReadFileRequest(**_named(sandbox_id, path), offset=offset, length=length)
        interrupted = False
        while True:
            begun = False
            try:
                async with contextlib.aclosing(self._stream(lambda s: s.files.ReadFile, request, FILE_S)) as pieces:
                    async for piece in pieces:
                        begun = True
                        request.offset += len(piece.data)
                        request.length -= min(request.length, len(piece.data))
                        yield piece.data
                break
            except Unavailable as error:
                if not begun or seen is None or seen.type is not FileType.REGULAR:
                    raise
                await self._calls.wait(self._calls.retries(), error)
                await self._check_unchanged(sandbox_id, path, seen)
                interrupted = True
                if length and not request.length:  # 0 would be all the rest
                    break
        if interrupted and seen is not None:
            await self._check_unchanged(sandbox_id, path, seen)

    async def _check_unchanged(self, sandbox_id: str, path: str, seen: FileInfo) -> None:
        if await self.stat(sandbox_id, path) != seen:
            raise PathUnusable(f"{path!r} changed while it was read and the connection was lost; read it again")

    async def read_archive(
        self, sandbox_id: str, path: str, *, gzip: bool = False, names: Sequence[str] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Packs a directory or a file."""
        request = pb.ReadArchiveRequest(**_named(sandbox_id, path), gzip=gzip, names=names)
        async with contextlib.aclosing(self._stream(lambda s: s.files.ReadArchive, request, FILE_S)) as pieces:
            async for piece in pieces:
                yield piece.data

    async def upload(
        self,
        sandbox_id: str,
        path: str,
        content: Callable[[int], AsyncIterator[bytes]],
        *,
        mode: int,
        upload_id: str,
    ) -> int:
        """Writes a file; after a lost connection it goes on with what has not arrived.

        ``content`` yields the bytes from an offset on, asked anew for each attempt; without an ``upload_id`` always
        from 0 on.
        """
        opening = pb.OpenFile(**_named(sandbox_id, path), mode=_mode(mode), create_parents=True, upload_id=upload_id)
        retries = self._calls.retries()
        sent = 0

        async def messages() -> AsyncIterator[pb.WriteFileRequest]:
            nonlocal sent
            sent = opening.offset
            yield pb.WriteFileRequest(open=opening)
            async for data in content(sent):
                yield pb.WriteFileRequest(data=data)
                sent += len(data)

        while True:
            try:
                with self._calls.call(FILE_S) as stubs:
                    answer = await _sent(stubs.files.WriteFile(timeout=FILE_S), messages())
                    return int(answer.size_bytes)
            except UploadGap as error:
                arrived = error.metadata.get("arrived_bytes", "")
                if not convert.is_offset(arrived) or int(arrived) >= opening.offset:
                    raise
                opening.offset = int(arrived)
            except Unavailable as error:
                await self._calls.wait(retries, error)
                if upload_id:  # otherwise nothing of it is kept, and all of it is sent again
                    opening.offset = sent  # the answer says if less of it has arrived

    async def write_archive(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]]
    ) -> tuple[int, int]:
        """Unpacks an archive; returns how many entries and bytes that made. Safe to repeat."""
        opening = pb.OpenArchive(**_named(sandbox_id, path))
        retries = self._calls.retries()

        async def messages() -> AsyncIterator[pb.WriteArchiveRequest]:
            yield pb.WriteArchiveRequest(open=opening)
            async for data in content():
                yield pb.WriteArchiveRequest(data=data)

        while True:
            try:
                with self._calls.call(FILE_S) as stubs:
                    answer = await _sent(stubs.files.WriteArchive(timeout=FILE_S), messages())
                    return answer.entries, answer.size_bytes
            except Unavailable as error:
                await self._calls.wait(retries, error)

    async def _stream(
        self, pick: Callable[[Stubs], Callable[..., Any]], request: object, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        """Yields the answers of a call, which is tried again as long as none has come."""
        retries = self._calls.retries()
        begun = False
        while True:
            try:
                with self._calls.call(timeout_s) as stubs:
                    call = pick(stubs)(request, timeout=timeout_s)
                    try:
                        while (message := checked(await call.read())) is not grpc.aio.EOF:
                            begun = True
                            yield message
                    finally:
                        call.cancel()
                    return
            except Unavailable as error:
                if begun:
                    raise  # what is there may be another thing by now
                await self._calls.wait(retries, error)


async def _sent(call: Any, messages: AsyncIterator[Any]) -> Any:
    """Sends messages and returns the answer. A daemon that has seen enough ends the call; its status says why."""
    # The C library takes the largest piece that was mapped and given back as the size up to which it keeps memory. So
    # the buffers of messages are used again; to map each anew costs as much as all the rest that we do for it.
    bytes(_KEPT_BYTES)
    status = DaemonStatus(call)
    try:
        with contextlib.suppress(asyncio.InvalidStateError):
            async for message in messages:
                await call.write(message)
            await call.done_writing()
        return checked(await call)
    except grpc.aio.AioRpcError as error:
        raise await status.instead_of(error) from None
    finally:
        call.cancel()


def _named(sandbox_id: str, path: str) -> dict[str, Any]:
    return {"sandbox_id": convert.text(sandbox_id, "sandbox_id"), "path": convert.text(path, "path")}


def _is_copy(made: FileInfo, source: FileInfo) -> bool:
    """Whether something is what a copy of ``source`` would be, as far as a look can tell."""
    if made.type is not source.type or made.link_target != source.link_target:
        return False
    if source.type is not FileType.REGULAR:
        return True
    moments = [info.modified_at.replace(microsecond=0) for info in (made, source)]
    return made.size_bytes == source.size_bytes and moments[0] == moments[1]


def _mode(mode: int) -> int:
    if not 0 <= mode <= 0o777:
        raise InvalidRequest(f"mode: {mode:#o} is not from 0 to 0o777")
    return mode
