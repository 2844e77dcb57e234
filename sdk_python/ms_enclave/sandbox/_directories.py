"""Directories between this machine and a sandbox: only what changed is moved."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from ms_enclave._model.files import FileInfo, FileType
from ms_enclave._transports.base import FileCalls
from ms_enclave.errors import InvalidRequest, NotServed, PathNotFound, PathUnusable, Unavailable
from ms_enclave.sandbox import _uploads as uploads
from ms_enclave.sandbox._landing import Landing, write
from ms_enclave.sandbox._received import Received

Progress = Callable[[int, int], object]
"""Called with the bytes moved so far and those there are in all."""

BATCH_FILES: Final = 1000
BATCH_BYTES: Final = 64 * 1024 * 1024
BATCH_NAMES_CHARS: Final = 256 * 1024
"""What one call brings at most, unless it is one file."""
BATCH_ATTEMPTS: Final = 3
"""How often files are asked for of which some have come when the connection is lost."""

SIZE_MAX_BYTES: Final = 4 * 1024**3
"""How much comes out of a sandbox at once, unless its user wants more. Its disks may be much smaller: a file has many
names there at no cost, and may be nothing but a hole, and here each of them takes all of its size."""

_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class _Local:
    """A file of this machine that goes to a sandbox."""

    path: Path
    name: str
    size: int
    mode: int
    time_s: int

    @property
    def signature(self) -> tuple[int, int, int]:
        """What tells that it is there already."""
        return self.size, self.mode, self.time_s


async def put(calls: FileCalls, sandbox_id: str, source: Path, target: str, progress: Progress | None = None) -> int:
    """Sends the files of a directory that are not there yet, as one archive; returns how many."""
    files = await asyncio.to_thread(_local_files, source)
    there = await _signatures(calls, sandbox_id, target)
    changed = [file for file in files if there.get(file.name) != file.signature]
    if changed:
        await calls.write_archive(sandbox_id, target, lambda: _archive(changed, progress))
    return len(changed)


def _local_files(source: Path) -> list[_Local]:
    found = []
    for path in uploads.regular_files(source):
        info = path.stat()
        mode = uploads.harmless_mode(info.st_mode)
        name = path.relative_to(source).as_posix()
        found.append(_Local(path, name, info.st_size, mode, max(0, int(info.st_mtime))))
    return found


async def _signatures(calls: FileCalls, sandbox_id: str, target: str) -> dict[str, tuple[int, int, int]]:
    """The files below a directory of the sandbox, by their names below it."""
    try:
        top = (await calls.stat(sandbox_id, target)).path
        listed = [info async for info in calls.list(sandbox_id, target, recursive=True)]
    except (PathNotFound, PathUnusable, NotServed):  # a way that shows nothing, or nothing there: everything is sent
        return {}
    return {
        info.path.removeprefix(f"{top}/"): (info.size_bytes, info.mode, int(info.modified_at.timestamp()))
        for info in listed
        if info.type is FileType.REGULAR
    }


async def _archive(files: Collection[_Local], progress: Progress | None) -> AsyncIterator[bytes]:
    """A tar archive of files, made while it is sent. Raises `InvalidRequest` if one shrinks meanwhile."""
    moved, total = 0, sum(file.size for file in files)
    for file in files:
        member = tarfile.TarInfo(file.name)
        member.size, member.mode, member.mtime = file.size, file.mode, file.time_s
        yield member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        left = file.size
        with await asyncio.to_thread(file.path.open, "rb") as content:
            while left:
                data = await asyncio.to_thread(content.read, min(left, uploads.CHUNK_BYTES))
                if not data:
                    raise InvalidRequest(f"source: {str(file.path)!r} became shorter while it was sent")
                left -= len(data)
                yield data
                moved += len(data)
                if progress is not None:
                    progress(moved, total)
        yield bytes(-file.size % _BLOCK)
    yield bytes(2 * _BLOCK)


async def get(
    calls: FileCalls,
    sandbox_id: str,
    top: str,
    listed: Iterable[FileInfo],
    target: Path,
    progress: Progress | None = None,
    *,
    inside: str = "",
    size_max_bytes: int = SIZE_MAX_BYTES,
) -> int:
    """Fetches the files of a directory that are not here yet; returns how many.

    What the sandbox lists is a stranger's: its names are checked before anything is made of them, and nothing is
    written through a link of this machine. ``inside``: a directory in ``target`` to put them in. Raises
    `InvalidRequest` before more than ``size_max_bytes`` are fetched.
    """
    landing = Landing(target)
    wanted = await asyncio.to_thread(_wanted, landing, target, top, listed, inside)
    moved, total = 0, sum(info.size_bytes for info, _ in wanted)
    count = 0
    bounded = bound(top, size_max_bytes)
    bounded(total)
    for batch in _batches(wanted, top):
        for attempts_left in reversed(range(BATCH_ATTEMPTS)):
            begun = False
            try:
                async with contextlib.aclosing(_fetched(calls, sandbox_id, top, dict(batch))) as found:
                    async for info, local, pieces in found:
                        begun = True
                        mode, time_s = uploads.harmless_mode(info.mode), info.modified_at.timestamp()
                        with landing.written(local, mode=mode, time_s=time_s) as file:
                            moved += await write(pieces, file, functools.partial(_added, bounded, moved))
                        del batch[_below(info, top)]
                        count += 1
                        if progress is not None:
                            progress(moved, max(total, moved))
                break
            except Unavailable:
                if not begun or not attempts_left:
                    raise
    return count


def bound(source: str, size_max_bytes: int) -> Callable[[int], None]:
    """Makes what is told the bytes so far, and raises `InvalidRequest` when they are too many."""

    def bounded(size_bytes: int) -> None:
        if size_bytes > size_max_bytes:
            raise InvalidRequest(
                f"source: {source!r} has more than {size_max_bytes} bytes to be fetched, if each file and each of its "
                "names takes its whole size; fetch less of it, or allow more (size_max_bytes, or --max-size of cp)"
            )

    return bounded


def _added(bounded: Callable[[int], None], before: int, size: int) -> None:
    bounded(before + size)


def _wanted(
    landing: Landing, target: Path, top: str, listed: Iterable[FileInfo], inside: str
) -> list[tuple[FileInfo, str]]:
    """Makes the directories, and finds the files that are not here yet, with their names below the target."""
    target.mkdir(parents=True, exist_ok=True)
    if inside:
        landing.make_directory(inside)
    wanted = []
    for info in listed:
        name = _inner_name(info.path, top)
        if name is None:
            continue
        local = f"{inside}/{name}" if inside else name
        if info.type is FileType.DIRECTORY:
            landing.make_directory(local)
        elif info.type is FileType.REGULAR and not landing.has(
            local, info.size_bytes, int(info.modified_at.timestamp())
        ):
            wanted.append((info, local))
    return wanted


def _batches(wanted: Iterable[tuple[FileInfo, str]], top: str) -> Iterator[dict[str, tuple[FileInfo, str]]]:
    """Puts files together by their names below the top, as many as one call should bring."""
    batch: dict[str, tuple[FileInfo, str]] = {}
    size = names = 0
    for info, local in wanted:
        name = _below(info, top)
        if batch and (
            len(batch) >= BATCH_FILES or names + len(name) > BATCH_NAMES_CHARS or size + info.size_bytes > BATCH_BYTES
        ):
            yield batch
            batch, size, names = {}, 0, 0
        batch[name] = info, local
        size += info.size_bytes
        names += len(name)
    if batch:
        yield batch


async def _fetched(
    calls: FileCalls, sandbox_id: str, top: str, batch: dict[str, tuple[FileInfo, str]]
) -> AsyncGenerator[tuple[FileInfo, str, AsyncIterator[bytes]], None]:
    """Fetches files, many by one call. One that is gone by now is left out."""
    if len(batch) == 1:
        ((info, local),) = batch.values()
        async with contextlib.aclosing(calls.read(sandbox_id, info.path, seen=info)) as pieces:
            yield info, local, pieces
        return
    async with contextlib.aclosing(calls.read_archive(sandbox_id, top, names=list(batch))) as pieces:
        received = Received(pieces)
        while (found := await received.next()) is not None:
            name, size = found
            asked = batch.pop(name, None)
            if asked is not None:
                yield *asked, received.content(size)


def _below(info: FileInfo, top: str) -> str:
    return info.path.removeprefix(f"{top}/")


def _inner_name(path: str, top: str) -> str | None:
    """The name below the directory; ``None`` for one that cannot be a name here."""
    if not path.startswith(f"{top}/") or "\N{REPLACEMENT CHARACTER}" in path or "\0" in path:
        return None
    name = path.removeprefix(f"{top}/")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or PurePosixPath(name).is_absolute():
        return None
    return name
