"""Files of a sandbox, handled by a process in it that has the rights of user code and no others."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeVar

from enclaved.core import cut_uploads, file_rows
from enclaved.core.background import Background
from enclaved.core.cut_uploads import CutUpload, CutUploads
from enclaved.core.executions import Executions
from enclaved.core.file_jobs import FileJobs
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import FieldViolation, InvalidRequest
from enclaved.metrics import Metrics
from enclaved.model import FileChange, FileInfo, FileJob, FileOperation, SandboxState, SearchMatch, Unpacked

PATH_BYTES_MAX: Final = 4096
PATTERN_CHARS_MAX: Final = 1000
MATCHES_MAX: Final = 10_000
MATCHES_DEFAULT: Final = 1000
MODE_MAX: Final = 0o777
NAMES_MAX: Final = 10_000

_UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

RowT = TypeVar("RowT")


class Files:
    """Streams files in and out of running sandboxes, and changes them.

    Every method raises `InvalidRequest`, `SandboxNotFound`, `WrongState` at once; `PathNotFound`, `PathUnusable`,
    `NoSpace`, `SandboxLost` while it works.
    """

    def __init__(
        self,
        *,
        sandboxes: Sandboxes,
        executions: Executions,
        background: Background,
        metrics: Metrics,
        upload_kept_s: float = cut_uploads.KEPT_S,
    ) -> None:
        self._sandboxes = sandboxes
        self._jobs = FileJobs(sandboxes, executions, metrics)
        self._cut = CutUploads(self._forget, background, upload_kept_s)

    @asynccontextmanager
    async def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Reads a regular file from ``offset``, at most ``length`` bytes (0: to the end)."""
        if offset < 0 or length < 0:
            raise InvalidRequest.of("offset" if offset < 0 else "length", "must not be negative")
        job = FileJob(FileOperation.READ, _checked(path), offset=offset, length=length or None)
        async with self._jobs.output(sandbox_id, job) as chunks:
            yield chunks

    async def write(
        self,
        sandbox_id: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int = 0o644,
        create_parents: bool = False,
        upload_id: str = "",
        offset: int = 0,
    ) -> int:
        """Writes a regular file and returns its size. It appears complete or not at all.

        With ``upload_id`` what arrived of a write that was cut is kept, and another goes on at ``offset``. Raises also
        `UploadGap`; an exception of ``chunks`` ends the write and passes through.
        """
        _check_mode(mode, "open.mode")
        if upload_id and not _UPLOAD_ID.fullmatch(upload_id):
            raise InvalidRequest.of("open.upload_id", "must be 1 to 64 letters, digits, _ and -")
        if offset < 0 or (offset and not upload_id):
            raise InvalidRequest.of("open.offset", "must be 0 or more, and 0 without an upload_id")
        job = FileJob(
            FileOperation.WRITE,
            _checked(path),
            mode=mode or 0o644,
            create_parents=create_parents,
            upload_id=upload_id,
            offset=offset,
        )
        upload = CutUpload(sandbox_id, path, upload_id)
        self._cut.taken_up(upload)
        try:
            size, _ = await self._jobs.input(sandbox_id, job, chunks)
        except BaseException:
            if upload_id and self._sandboxes.known(sandbox_id) is not None:
                self._cut.keep(upload)
            raise
        return offset + size

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        """Shows what a path is; a link as itself."""
        job = FileJob(FileOperation.STAT, _checked(path))
        async with self._rows(sandbox_id, job, file_rows.file_info) as found:
            info = await anext(found, None)
            if info is None:
                raise file_rows.nonsense(path)
            async for _ in found:  # to its end, which may be an error
                pass
        return info

    @asynccontextmanager
    async def list(
        self, sandbox_id: str, path: str, *, recursive: bool = False, glob: str = ""
    ) -> AsyncIterator[AsyncIterator[tuple[FileInfo, ...]]]:
        """Lists a directory in pages, sorted by path."""
        job = FileJob(FileOperation.SCAN, _checked(path), recursive=recursive, glob=_checked_glob(glob))
        async with (
            self._rows(sandbox_id, job, file_rows.file_info) as found,
            aclosing(file_rows.pages(found, lambda info: file_rows.size_bytes(info.path, info.link_target))) as pages,
        ):
            yield pages

    async def make_directory(
        self, sandbox_id: str, path: str, *, mode: int = 0o755, create_parents: bool = False
    ) -> None:
        """Makes a directory; leaves one that is there alone. Raises also `PathExists`."""
        _check_mode(mode, "mode")
        job = FileJob(FileOperation.MAKE_DIRECTORY, _checked(path), mode=mode or 0o755, create_parents=create_parents)
        await self._jobs.do(sandbox_id, job)

    async def move(self, sandbox_id: str, path: str, target_path: str, *, replace: bool = False) -> None:
        """Gives something another path. Raises also `PathExists`."""
        target = _checked(target_path, "target_path")
        await self._jobs.do(
            sandbox_id, FileJob(FileOperation.MOVE, _checked(path), target_path=target, replace=replace)
        )

    async def copy(
        self, sandbox_id: str, path: str, target_path: str, *, replace: bool = False, recursive: bool = False
    ) -> None:
        """Copies a file or link, and with ``recursive`` a directory. Raises also `PathExists`."""
        target = _checked(target_path, "target_path")
        job = FileJob(FileOperation.COPY, _checked(path), target_path=target, replace=replace, recursive=recursive)
        await self._jobs.do(sandbox_id, job)

    async def remove(self, sandbox_id: str, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Removes a file, a link or an empty directory, and with ``recursive`` a directory with all in it."""
        job = FileJob(FileOperation.DELETE, _checked(path), recursive=recursive, missing_ok=missing_ok)
        await self._jobs.do(sandbox_id, job)

    @asynccontextmanager
    async def watch(
        self, sandbox_id: str, path: str, *, recursive: bool = False
    ) -> AsyncIterator[AsyncIterator[FileChange]]:
        """Tells what changes in a directory, until the block is left or the directory is gone."""
        job = FileJob(FileOperation.WATCH, _checked(path), recursive=recursive)
        async with self._rows(sandbox_id, job, file_rows.file_change) as changes:
            yield changes

    @asynccontextmanager
    async def search(
        self,
        sandbox_id: str,
        path: str,
        pattern: str,
        *,
        literal: bool = False,
        ignore_case: bool = False,
        glob: str = "",
        matches_max: int = 0,
    ) -> AsyncIterator[AsyncIterator[tuple[SearchMatch | None, ...]]]:
        """Looks for lines that match; ``None`` at the end: there are more than ``matches_max`` (0: 1000)."""
        if not 0 < len(pattern) <= PATTERN_CHARS_MAX:
            raise InvalidRequest.of("pattern", f"must have 1 to {PATTERN_CHARS_MAX} characters")
        if not 0 <= matches_max <= MATCHES_MAX:
            raise InvalidRequest.of("matches_max", f"must be from 0 to {MATCHES_MAX}")
        job = FileJob(
            FileOperation.SEARCH,
            _checked(path),
            pattern=pattern,
            literal=literal,
            ignore_case=ignore_case,
            glob=_checked_glob(glob),
            matches_max=matches_max or MATCHES_DEFAULT,
        )
        async with (
            self._rows(sandbox_id, job, file_rows.search_match) as found,
            aclosing(file_rows.pages(found, _match_bytes)) as pages,
        ):
            yield pages

    @asynccontextmanager
    async def read_archive(
        self, sandbox_id: str, path: str, *, gzip: bool = False, names: Sequence[str] = ()
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Packs a directory or a file into a tar archive; with ``names`` only these files below the directory."""
        if len(names) > NAMES_MAX:
            raise InvalidRequest.of("names", f"must be at most {NAMES_MAX}; ask for the rest in another call")
        for name in names:
            if name.startswith("/") or ".." in _checked(name, "names").split("/"):
                raise InvalidRequest.of("names", "must be relative to the directory, without ..")
        async with self._jobs.output(
            sandbox_id, FileJob(FileOperation.READ_ARCHIVE, _checked(path), gzip=gzip, names=tuple(names))
        ) as chunks:
            yield chunks

    async def write_archive(self, sandbox_id: str, path: str, chunks: AsyncIterator[bytes]) -> Unpacked:
        """Unpacks a tar archive into a directory. An exception of ``chunks`` ends that and passes through."""
        _, answer = await self._jobs.input(sandbox_id, FileJob(FileOperation.WRITE_ARCHIVE, _checked(path)), chunks)
        try:
            return file_rows.unpacked(answer)
        except file_rows.NotARow:
            raise file_rows.nonsense(path) from None

    # -- jobs ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _rows(
        self, sandbox_id: str, job: FileJob, read: Callable[[Any], RowT]
    ) -> AsyncIterator[AsyncIterator[RowT]]:
        async def checked(found: AsyncIterator[Any]) -> AsyncGenerator[RowT, None]:
            async for row in found:
                try:
                    yield read(row)
                except file_rows.NotARow:
                    raise file_rows.nonsense(job.path) from None

        async with (
            self._jobs.output(sandbox_id, job) as chunks,
            aclosing(file_rows.rows(chunks, job.path)) as found,
            aclosing(checked(found)) as rows,
        ):
            yield rows

    async def _forget(self, upload: CutUpload) -> None:
        record = self._sandboxes.record(upload.sandbox_id)
        if record.state is SandboxState.PAUSED:
            self._cut.keep(upload)
            return
        job = FileJob(FileOperation.FORGET_UPLOAD, upload.path, upload_id=upload.upload_id)
        await self._jobs.do(upload.sandbox_id, job)


def _match_bytes(match: SearchMatch | None) -> int:
    return 0 if match is None else file_rows.size_bytes(match.path, match.text)


def _checked(path: str, field: str = "path") -> str:
    problem = ""
    if not path.strip():
        problem = "must not be empty"
    elif "\0" in path:
        problem = "must not contain NUL"
    elif len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX:
        problem = f"must not be longer than {PATH_BYTES_MAX} bytes"
    if problem:
        raise InvalidRequest(FieldViolation(field, problem))
    return path


def _checked_glob(glob: str) -> str:
    return _checked(glob, "glob") if glob else ""


def _check_mode(mode: int, field: str) -> None:
    if not 0 <= mode <= MODE_MAX:
        raise InvalidRequest.of(field, f"must be permission bits from 0 to {MODE_MAX:#o}")
