"""The command cp: files and directories between this machine, sandboxes, and our standard streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ms_enclave._cli import streams
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._model.config import memory_bytes
from ms_enclave._model.files import FileInfo, FileType
from ms_enclave._transports.base import FileCalls
from ms_enclave.errors import InvalidRequest, PathNotFound
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox import _uploads as uploads
from ms_enclave.sandbox._directories import Progress
from ms_enclave.sandbox._landing import save

STDIN, STDOUT = 0, 1
STREAM: Final = "-"


@dataclass(frozen=True, slots=True)
class End:
    """Where something is copied from or to."""

    sandbox: str
    """Empty: this machine."""
    path: str

    @classmethod
    def of(cls, text: str) -> End:
        """Reads ``SANDBOX:PATH`` or a path of this machine."""
        sandbox, colon, path = text.partition(":")
        return cls(sandbox, path or ".") if colon and sandbox and "/" not in sandbox else cls("", text)

    @property
    def is_stream(self) -> bool:
        """Whether it is our standard input or output."""
        return not self.sandbox and self.path == STREAM

    def __str__(self) -> str:
        return f"{self.sandbox}:{self.path}" if self.sandbox else self.path


@dataclass(slots=True)
class Copied:
    """What has been copied."""

    files: int = 0
    size_bytes: int = 0


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--tar", "as_tar", is_flag=True, help="What goes through - is a tar archive, to unpack or packed.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option(
    "--max-size", default="4g", metavar="SIZE", help="Bytes at most out of a directory of a sandbox, as in 512m. [4g]"
)
@address_option
@json_option
@click.pass_context
def cp(
    context: click.Context,
    /,
    source: str,
    target: str,
    as_tar: bool,
    quiet: bool,
    max_size: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Copies a file or a directory. One of SOURCE and TARGET is SANDBOX:PATH, or both are; - is a standard stream.

    A TARGET that is a directory, or ends with /, gets SOURCE under its own name. Of a directory only what changed is
    moved; DIRECTORY/. is what is in one. A path of this machine with a colon needs a slash, as in ./a:b.

    \b
    Examples:
      ms-enclave cp data.csv box:data/
      ms-enclave cp box:results ./results
      echo 42 | ms-enclave cp - box:answer
      ms-enclave cp box:src - --tar | tar t
      ms-enclave cp one:model.bin two:model.bin
    """
    ends = End.of(source), End.of(target)
    if not (ends[0].sandbox or ends[1].sandbox):
        raise click.UsageError("name a sandbox, as in SANDBOX:PATH", context)
    if as_tar and not (ends[0].is_stream or ends[1].is_stream):
        raise click.UsageError("--tar is for - only", context)
    if as_json and ends[1].is_stream:
        raise click.UsageError("--json and the copy cannot both go to standard output", context)
    try:
        size_max_bytes = memory_bytes(max_size)
    except ValueError as error:
        raise click.UsageError(f"--max-size: {error}", context) from None
    copied = asyncio.run(_copied(*ends, as_tar, quiet or as_json, address, size_max_bytes))
    if as_json:
        print_json({"source": source, "target": target, "files": copied.files, "size_bytes": copied.size_bytes})


async def _copied(
    source: End, target: End, as_tar: bool, quiet: bool, address: str | None, size_max_bytes: int
) -> Copied:
    calls = (await running_daemon(address)).files
    copied = Copied()
    with _bar(quiet) as shown:

        def progress(moved: int, total: int) -> None:
            copied.size_bytes = moved
            shown(moved, total)

        if source.sandbox and target.sandbox:
            await _between(calls, source, target, copied, shown)
        elif source.sandbox:
            await _out(calls, source, target, as_tar, copied, progress, size_max_bytes)
        else:
            await _in(calls, source, target, as_tar, copied, progress)
    return copied


async def _in(calls: FileCalls, source: End, target: End, as_tar: bool, copied: Copied, progress: Progress) -> None:
    """Copies into a sandbox."""
    if source.is_stream:
        content = _once(_counted(streams.read(STDIN), progress))
        if as_tar:
            copied.files, _ = await calls.write_archive(target.sandbox, target.path, lambda: content(0))
        else:
            await calls.upload(target.sandbox, target.path, content, mode=0o644, upload_id="")
            copied.files = 1
        return
    local = Path(source.path)
    info = await asyncio.to_thread(local.stat)
    path = await _target_in(calls, target, posixpath.basename(source.path.rstrip("/")))
    if local.is_dir():
        copied.files = await directories.put(calls, target.sandbox, local, path, progress)
        return

    async def content_from(offset: int) -> AsyncIterator[bytes]:
        with await asyncio.to_thread(local.open, "rb") as file:
            if uploads.version(os.fstat(file.fileno())) != uploads.version(info):
                raise InvalidRequest(f"{str(local)!r} changed while it was sent; send it again")
            file.seek(offset)
            while data := await asyncio.to_thread(file.read, uploads.CHUNK_BYTES):
                yield data
                offset += len(data)
                progress(offset, info.st_size)

    mode = info.st_mode & 0o777
    copied.size_bytes = await calls.upload(target.sandbox, path, content_from, mode=mode, upload_id=uuid.uuid4().hex)
    copied.files = 1


async def _out(
    calls: FileCalls,
    source: End,
    target: End,
    as_tar: bool,
    copied: Copied,
    progress: Progress,
    size_max_bytes: int = directories.SIZE_MAX_BYTES,
) -> None:
    """Copies out of a sandbox."""
    if target.is_stream:
        stream = calls.read_archive(source.sandbox, source.path) if as_tar else calls.read(source.sandbox, source.path)
        async with contextlib.aclosing(stream) as pieces:
            async for data in _counted(pieces, progress):
                await streams.write(STDOUT, data)
        return
    info = await _followed(calls, source)
    local = Path(target.path)
    inside = _own_name(source) if target.path.endswith("/") or local.is_dir() else ""
    if info.type is FileType.DIRECTORY:
        listed = [found async for found in calls.list(source.sandbox, info.path, recursive=True)]
        copied.files = await directories.get(
            calls, source.sandbox, info.path, listed, local, progress, inside=inside, size_max_bytes=size_max_bytes
        )
        return
    if not inside and local.is_dir():
        raise InvalidRequest(f"{source}: has no name that could be one here; name the target")
    async with contextlib.aclosing(calls.read(source.sandbox, info.path, seen=info)) as pieces:
        total = info.size_bytes
        copied.size_bytes = await save(
            pieces,
            local / inside,
            lambda moved: progress(moved, max(total, moved)),
            mode=uploads.harmless_mode(info.mode),
        )
    copied.files = 1


async def _between(calls: FileCalls, source: End, target: End, copied: Copied, shown: Progress) -> None:
    """Copies from sandbox to sandbox, through here but not to the disk."""
    info = await _followed(calls, source)
    path = await _target_in(calls, target, _own_name(source))

    def seen(moved: int, total: int) -> None:
        copied.size_bytes = moved
        shown(moved, max(total, info.size_bytes))

    if info.type is FileType.DIRECTORY:
        copied.files, copied.size_bytes = await calls.write_archive(
            target.sandbox, path, lambda: calls.read_archive(source.sandbox, info.path)
        )
        return

    async def content(offset: int) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(calls.read(source.sandbox, info.path, offset=offset, seen=info)) as pieces:
            async for data in _counted(pieces, seen, offset):
                yield data

    await calls.upload(target.sandbox, path, content, mode=uploads.harmless_mode(info.mode), upload_id="")
    copied.files = 1


async def _followed(calls: FileCalls, end: End) -> FileInfo:
    """What is there; of a link, what it leads to."""
    info = await calls.stat(end.sandbox, end.path)
    if info.type is FileType.SYMLINK:
        path = posixpath.join(posixpath.dirname(info.path), info.link_target)
        info = await calls.stat(end.sandbox, path)
    return info


async def _target_in(calls: FileCalls, target: End, name: str) -> str:
    """Where in the sandbox it goes: below a directory that is there, under its own name."""
    if name in ("", ".", ".."):
        return target.path
    try:
        is_directory = (await _followed(calls, target)).type is FileType.DIRECTORY
    except PathNotFound:
        is_directory = target.path.endswith("/")
    return posixpath.join(target.path, name) if is_directory else target.path


def _own_name(source: End) -> str:
    """The name of something of a sandbox, as the user wrote it; empty for what is in a directory.

    Never that of what a link leads to: whoever made the link chose it, and it could be that of a file of the user's.
    """
    name = posixpath.basename(source.path.rstrip("/"))
    return "" if name in (".", "..") else name


async def _counted(pieces: AsyncIterator[bytes], progress: Progress, moved: int = 0) -> AsyncGenerator[bytes, None]:
    async for data in pieces:
        yield data
        moved += len(data)
        progress(moved, 0)


def _once(pieces: AsyncIterator[bytes]) -> Callable[[int], AsyncIterator[bytes]]:
    """The content of a stream, which can be read once: a lost connection cannot be made good."""
    given = False

    def content(offset: int) -> AsyncIterator[bytes]:
        nonlocal given
        if given:
            raise InvalidRequest("standard input was sent in part when the connection was lost; send it again")
        given = True
        return pieces

    return content


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """Shows how far a copy is, on a terminal only."""
    if quiet or not streams.is_terminal(2):
        yield lambda moved, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=None)
        yield lambda moved, total: bars.update(bar, completed=moved, total=total or None)
