"""Where files of a sandbox are put on this machine: below one directory, and through no link in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from ms_enclave.errors import InvalidRequest

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Landing:
    """A directory of this machine, in which strangers' names are made.

    The directory itself is whatever its user named. Of a name below it every part is opened as what it is, so a link
    never leads away, not even one that is put there meanwhile. Names have no ``..`` and do not begin with a slash; all
    methods raise `InvalidRequest` where one leads through a link or a file.
    """

    def __init__(self, top: Path) -> None:
        self._top = top

    def make_directory(self, name: str) -> None:
        """Makes a directory, with those above it; leaves one that is there alone."""
        with self._folder(name.split("/"), make=True):
            pass

    def has(self, name: str, size_bytes: int, time_s: int) -> bool:
        """Whether there is a regular file of this size and time (in whole seconds)."""
        *parents, last = name.split("/")
        try:
            with self._folder(parents, make=False) as folder:
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and (found.st_size, int(found.st_mtime)) == (size_bytes, time_s)

    @contextlib.contextmanager
    def written(self, name: str, *, mode: int, time_s: float | None = None) -> Iterator[IO[bytes]]:
        """Lends a file that gets its name when the block ends well, in the place of what has that name."""
        *parents, last = name.split("/")
        with self._folder(parents, make=True) as folder:
            temporary = f".ms-enclave-{uuid.uuid4().hex}"
            fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    yield file
                    file.flush()
                    os.fchmod(fd, mode)
                    if time_s is not None:
                        os.utime(fd, (time_s, time_s))
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool) -> Iterator[int]:
        fd = os.open(self._top, _FOLDER)
        try:
            for number, part in enumerate(parts, 1):
                try:
                    inner = _entered(fd, part, make=make)
                except NotADirectoryError:
                    raise self._blocked("/".join(parts[:number])) from None
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _blocked(self, name: str) -> InvalidRequest:
        return InvalidRequest(
            f"target: {str(self._top / name)!r} is a link or a file on this machine, and the sandbox has a directory "
            "of that name; nothing is written through it: remove it, or choose another target"
        )


def _entered(folder: int, name: str, *, make: bool) -> int:
    """Opens a directory in another one. Raises NotADirectoryError for a link."""
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


async def save(
    pieces: AsyncIterator[bytes],
    target: Path,
    report: Callable[[int], object] | None = None,
    *,
    mode: int = 0o644,
) -> int:
    """Writes pieces into a file that appears when it is complete; returns its size."""
    with Landing(target.parent).written(target.name, mode=mode) as file:
        return await write(pieces, file, report)


async def write(pieces: AsyncIterator[bytes], file: IO[bytes], report: Callable[[int], object] | None = None) -> int:
    """Writes pieces into a file; returns how many bytes. ``report`` is called with those so far."""
    size = 0
    async for piece in pieces:
        await asyncio.to_thread(file.write, piece)
        size += len(piece)
        if report is not None:
            report(size)
    return size
