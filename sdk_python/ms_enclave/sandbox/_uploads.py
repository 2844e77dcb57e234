"""Puts directories and archives into a sandbox, one regular file at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import lzma
import os
import posixpath
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from ms_enclave.errors import InvalidRequest

CHUNK_BYTES: Final = 256 * 1024
ARCHIVE_MEMBERS_MAX: Final = 10_000
ARCHIVE_BYTES_MAX: Final = 1024**3
"""Unpacked. What is packed tightly may be much smaller."""

Content = Callable[[], AsyncIterator[bytes]]


class Writer(Protocol):
    """Writes one file of a sandbox."""

    async def __call__(self, path: str, content: Content, mode: int) -> int:
        """Takes its path, its content (asked anew for each attempt) and its permission bits."""
        ...


def content_of(data: bytes) -> Content:
    """Makes the content of bytes that are at hand."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    return pieces


async def put_dir(write: Writer, source: str | os.PathLike[str], target: str) -> None:
    """Copies a directory of this machine, with everything below it, into ``target``.

    Links that stay inside become copies; empty directories are left out. Raises ``ValueError``, before anything is
    copied, for a ``source`` that is no directory, and for links that lead out of it, devices and pipes in it.
    """
    root = Path(source)
    for path in await asyncio.to_thread(_regular_files, root):
        mode = (await asyncio.to_thread(path.stat)).st_mode & 0o777
        relative = path.relative_to(root).as_posix()
        await write(posixpath.join(target, relative), _read(functools.partial(_open, path)), mode)


async def put_archive(write: Writer, target: str, tar_bytes: bytes) -> None:
    """Unpacks a tar archive (plain, gzip, bzip2 or xz) into ``target``.

    Links inside the archive become copies; empty directories are left out. Raises ``ValueError``, before anything is
    written, for an archive that is empty or malformed, holds devices, leads out of ``target``, or unpacks to more
    than 10 000 members or 1 GiB.
    """
    if not tar_bytes:
        raise InvalidRequest("Archive body must not be empty")
    with _archive_errors():
        archive = await asyncio.to_thread(tarfile.open, fileobj=io.BytesIO(tar_bytes))
    with archive:
        for file in await asyncio.to_thread(_checked_files, archive):
            content = _read(functools.partial(_opened, archive, file.member))
            await write(posixpath.join(target, file.name), content, file.mode)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _read(opened: Callable[[], IO[bytes]]) -> Content:
    async def pieces() -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(opened)
        try:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield data
        finally:
            file.close()

    return pieces


def _regular_files(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InvalidRequest(f"source: {str(root)!r} is no directory")
    found = []
    inside = root.resolve()
    for path in sorted(root.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise InvalidRequest(f"source: {str(path)!r} is a link that leads out of {str(root)!r}")
        if path.is_file():
            found.append(path)
        elif path.is_symlink() or not path.is_dir():
            raise InvalidRequest(f"source: {str(path)!r} is neither a regular file nor a directory")
    return found


@dataclass(frozen=True, slots=True)
class _File:
    """A member of an archive that becomes a file, under a name that stays below the target."""

    name: str
    mode: int
    member: tarfile.TarInfo


def _checked_files(archive: tarfile.TarFile) -> list[_File]:
    found = []
    left_bytes = ARCHIVE_BYTES_MAX
    with _archive_errors():
        for number, member in enumerate(archive, start=1):
            if number > ARCHIVE_MEMBERS_MAX:
                raise InvalidRequest(f"archive: has more than {ARCHIVE_MEMBERS_MAX} members")
            # Before the archive is read on: a member that claims to be huge would have to be unpacked to skip it.
            left_bytes -= member.size
            if left_bytes < 0:
                raise InvalidRequest(f"archive: unpacks to more than {ARCHIVE_BYTES_MAX} bytes")
            _check(member)
            if not member.isdir():
                found.append(_File(member.name.lstrip("/"), _mode(member), member))
        for file in found:
            if not file.member.isreg():
                left_bytes -= _size_bytes(archive, file.member)
        if left_bytes < 0:
            raise InvalidRequest(f"archive: unpacks to more than {ARCHIVE_BYTES_MAX} bytes")
    return found


def _check(member: tarfile.TarInfo) -> None:
    """Raises what ``tarfile.data_filter`` would; that came with Python 3.11.4, and Debian 12 has 3.11.2."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise tarfile.ExtractError(f"{member.name!r} is a device or another special file")
    name = member.name.lstrip("/")
    if _leads_out(name):
        raise tarfile.ExtractError(f"{member.name!r} leads out of the archive")
    if member.issym() or member.islnk():
        origin = posixpath.dirname(name) if member.issym() else ""
        if member.linkname.startswith("/") or _leads_out(posixpath.join(origin, member.linkname)):
            raise tarfile.ExtractError(f"{member.name!r} is a link that leads out of the archive")


def _leads_out(name: str) -> bool:
    return posixpath.normpath(name).split("/")[0] == ".."


def _mode(member: tarfile.TarInfo) -> int:
    """Keeps the permission bits that are harmless: the owner may read and write, nobody else may write."""
    executable = 0o111 if member.mode & 0o100 else 0
    return (member.mode & (0o644 | executable)) | 0o600


def _size_bytes(archive: tarfile.TarFile, link: tarfile.TarInfo) -> int:
    with _opened(archive, link) as file:
        return file.seek(0, io.SEEK_END)


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    try:
        file = archive.extractfile(member)
    except (KeyError, RecursionError):
        file = None
    if file is None:
        raise InvalidRequest(f"archive: {member.name!r} links to nothing that is a file in the archive")
    return file


@contextlib.contextmanager
def _archive_errors() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise InvalidRequest(f"archive: cannot be read: {error}") from error
