"""The files of a sandbox: looking, moving content both ways, changing, searching and watching."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from ms_enclave._model.files import FileChange, FileInfo, FileType, SearchResult
from ms_enclave._transports.base import FileCalls
from ms_enclave.errors import InvalidRequest, NotServed, PathNotFound
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox import _uploads as uploads
from ms_enclave.sandbox._landing import save
from ms_enclave.sandbox._received import anew, whole

if TYPE_CHECKING:
    from ms_enclave.sandbox.boxes.base import Sandbox

READ_BYTES_MAX: Final = 1024**3

Progress = directories.Progress


class Files:
    """The files of one sandbox: ``sandbox.files``.

    Paths are absolute or relative to the working directory, and lie in that or in /tmp. Everything is done with the
    rights of the sandbox's own programs. All methods raise `PathNotFound`, `PathUnusable`, `InvalidRequest`, `NoSpace`.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    # -- content -------------------------------------------------------------------------------------------------

    async def read(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Reads a file, or ``length`` bytes of it (0: to its end) from ``offset`` on; at most 1 GiB."""
        calls = await self._calls()
        hint = f"{path!r} has more than {READ_BYTES_MAX} bytes; use download()"
        return await whole(
            lambda: calls.read(self._sandbox.id, path, offset=offset, length=length), READ_BYTES_MAX, hint
        )

    async def write(self, path: str, content: str | bytes, *, encoding: str = "utf-8", mode: int = 0o644) -> int:
        """Writes a file, with missing directories above it, and returns its size. It appears whole or not at all."""
        data = uploads.encoded(content, encoding)
        transport = await self._sandbox.transport()
        if transport is None:
            raise self._not_served()
        return await transport.write_file(self._sandbox.id, path, uploads.content_of(data), mode=mode)

    async def upload(
        self, source: str | os.PathLike[str], path: str, *, mode: int | None = None, progress: Progress | None = None
    ) -> int:
        """Copies a file of this machine into the sandbox, and returns its size.

        After a lost connection it goes on where it was cut. ``mode``: permission bits; ``None``: as here.
        """
        local = Path(source)
        found = await asyncio.to_thread(local.stat)
        total = found.st_size

        async def content(offset: int) -> AsyncIterator[bytes]:
            with await asyncio.to_thread(local.open, "rb") as file:
                if uploads.version(os.fstat(file.fileno())) != uploads.version(found):
                    raise InvalidRequest(f"source: {str(local)!r} changed while it was sent; send it again")
                file.seek(offset)
                while data := await asyncio.to_thread(file.read, uploads.CHUNK_BYTES):
                    yield data
                    offset += len(data)
                    if progress is not None:
                        progress(offset, total)

        mode = found.st_mode & 0o777 if mode is None else mode
        calls = await self._calls()
        return await calls.upload(self._sandbox.id, path, content, mode=mode, upload_id=uuid.uuid4().hex)

    async def download(self, path: str, target: str | os.PathLike[str], *, progress: Progress | None = None) -> int:
        """Copies a file of the sandbox to this machine, and returns its size. It appears whole or not at all.

        After a lost connection it goes on where it was cut; a file that changed meanwhile is `PathUnusable`.
        """
        info = await self.stat(path)
        calls = await self._calls()
        async with contextlib.aclosing(calls.read(self._sandbox.id, path, seen=info)) as pieces:
            report = None if progress is None else functools.partial(_report, progress, info.size_bytes)
            return await save(pieces, Path(target), report)

    # -- looking and changing ------------------------------------------------------------------------------------

    async def stat(self, path: str) -> FileInfo:
        """Shows what a path is; a link as itself."""
        return await (await self._calls()).stat(self._sandbox.id, path)

    async def exists(self, path: str) -> bool:
        """Whether something is there."""
        try:
            await self.stat(path)
        except PathNotFound:
            return False
        return True

    async def list(self, path: str = ".", *, recursive: bool = False, glob: str = "") -> list[FileInfo]:
        """Lists a directory, sorted by path; with ``recursive`` everything below it, links not followed.

        ``glob``: only paths below the directory that match: ``*``, ``?``, ``[abc]``, and ``**`` for any directories.
        """
        calls = await self._calls()
        return [info async for info in calls.list(self._sandbox.id, path, recursive=recursive, glob=glob)]

    async def make_directory(self, path: str, *, mode: int = 0o755, create_parents: bool = False) -> None:
        """Makes a directory; leaves one that is there alone. Raises `PathExists` where a file is."""
        await (await self._calls()).make_directory(self._sandbox.id, path, mode=mode, create_parents=create_parents)

    async def move(self, path: str, target: str, *, replace: bool = False) -> None:
        """Gives a file, link or directory another path. Raises `PathExists`; ``replace``: a file may be replaced."""
        await (await self._calls()).move(self._sandbox.id, path, target, replace=replace)

    async def copy(self, path: str, target: str, *, replace: bool = False, recursive: bool = False) -> None:
        """Copies a file or link, and with ``recursive`` a directory. Raises as `move`."""
        await (await self._calls()).copy(self._sandbox.id, path, target, replace=replace, recursive=recursive)

    async def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Removes a file, a link or an empty directory, and with ``recursive`` a directory with all that is in it."""
        await (await self._calls()).remove(self._sandbox.id, path, recursive=recursive, missing_ok=missing_ok)

    async def search(
        self,
        pattern: str,
        path: str = ".",
        *,
        literal: bool = False,
        ignore_case: bool = False,
        glob: str = "",
        matches_max: int = 1000,
    ) -> SearchResult:
        """Looks for lines in a file, or in those below a directory; binary files are passed over.

        ``pattern``: a regular expression, or with ``literal`` a text. ``matches_max``: up to 10 000.
        """
        if not 0 < matches_max <= 10_000:
            raise InvalidRequest("matches_max: must be from 1 to 10000")
        return await (await self._calls()).search(
            self._sandbox.id,
            path,
            pattern,
            literal=literal,
            ignore_case=ignore_case,
            glob=glob,
            matches_max=matches_max,
        )

    @contextlib.asynccontextmanager
    async def watch(
        self, path: str = ".", *, recursive: bool = False
    ) -> AsyncIterator[AsyncGenerator[FileChange, None]]:
        """Watches a directory: what changes after the block is entered is yielded.

        ``recursive``: everything below it too, at most 1024 directories. Raises `PathUnusable` for more.
        """
        calls = await self._calls()
        async with contextlib.aclosing(calls.watch(self._sandbox.id, path, recursive=recursive)) as found:
            await anext(found)  # it is watched now
            async with contextlib.aclosing(_changes(found)) as changes:
                yield changes

    # -- directories and archives --------------------------------------------------------------------------------

    async def put_dir(self, source: str | os.PathLike[str], target: str, *, progress: Progress | None = None) -> int:
        """Copies a directory of this machine into ``target``, and returns how many files that moved.

        Files that have the same size, time and permissions there are not sent again. Links that stay inside become
        copies; empty directories are left out; what else is in ``target`` stays. Raises ``ValueError``, before
        anything is copied, for anything else than files and directories.
        """
        return await directories.put(await self._calls(), self._sandbox.id, Path(source), target, progress)

    async def get_dir(
        self,
        source: str,
        target: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        size_max_bytes: int = directories.SIZE_MAX_BYTES,
    ) -> int:
        """Copies a directory of the sandbox into ``target`` on this machine, and returns how many files that moved.

        Files that have the same size and time here are not fetched again. Links, pipes and sockets are left out, as
        are names that are not UTF-8; what else is in ``target`` stays. Raises `InvalidRequest` where that would be more
        than ``size_max_bytes`` here: a sandbox can give one file many names, and make files that are mostly holes.
        """
        found = await self.list(source, recursive=True)
        top = (await self.stat(source)).path
        calls = await self._calls()
        local = Path(target)
        return await directories.get(
            calls, self._sandbox.id, top, found, local, progress, size_max_bytes=size_max_bytes
        )

    async def put_archive(self, archive: bytes | str | os.PathLike[str], target: str) -> int:
        """Unpacks a tar archive (plain, gzip, bzip2 or xz; bytes, or a file here) and returns how many entries it had.

        Entries that lead out of ``target``, links that do, and devices are refused with ``ValueError``; what came
        before them stays. Hard links become copies.
        """
        if isinstance(archive, bytes):
            content = uploads.content_of(archive)
        else:
            content = uploads.read_pieces(functools.partial(_open, Path(archive)))
        entries, _ = await (await self._calls()).write_archive(self._sandbox.id, target, content)
        return entries

    async def get_archive(
        self,
        source: str,
        target: str | os.PathLike[str] | None = None,
        *,
        gzip: bool = False,
        size_max_bytes: int = directories.SIZE_MAX_BYTES,
    ) -> bytes:
        """Packs a directory or a file into a tar archive: into the file ``target``, or returned, at most 1 GiB.

        Raises `InvalidRequest`, and leaves no file, where the archive has more than ``size_max_bytes``.
        """
        calls = await self._calls()
        if target is None:
            hint = f"the archive of {source!r} has more than {READ_BYTES_MAX} bytes; name a file"
            return await whole(lambda: calls.read_archive(self._sandbox.id, source, gzip=gzip), READ_BYTES_MAX, hint)

        async def into(began: Callable[[int], object]) -> bytes:
            async with contextlib.aclosing(calls.read_archive(self._sandbox.id, source, gzip=gzip)) as pieces:
                bounded = directories.bound(source, size_max_bytes)

                def report(moved: int) -> None:
                    began(moved)
                    bounded(moved)

                await save(pieces, Path(target), report)
            return b""

        return await anew(into)

    async def _calls(self) -> FileCalls:
        transport = await self._sandbox.transport()
        if transport is None:
            raise self._not_served()
        return transport.files

    def _not_served(self) -> NotServed:
        return NotServed(f"sandboxes of type {self._sandbox.sandbox_type.value} have no files to read or write")


async def _changes(found: AsyncIterator[FileChange | None]) -> AsyncGenerator[FileChange, None]:
    async for change in found:
        if change is not None:
            yield change


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _report(progress: Progress, total: int, moved: int) -> None:
    progress(moved, max(total, moved))


__all__ = ["FileType", "Files", "Progress"]
