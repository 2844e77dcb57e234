"""What goes from this machine into a sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Final

from ms_enclave.errors import InvalidRequest

CHUNK_BYTES: Final = 256 * 1024

Content = Callable[[], AsyncIterator[bytes]]


def content_of(data: bytes) -> Content:
    """Makes the content of bytes that are at hand."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    return pieces


def encoded(content: str | bytes, encoding: str) -> bytes:
    """Makes bytes of a text. Raises `InvalidRequest` for one that the encoding cannot write."""
    try:
        return content.encode(encoding) if isinstance(content, str) else content
    except (LookupError, UnicodeError) as error:
        raise InvalidRequest(f"text: cannot be written as {encoding!r}: {error}") from None


def read_pieces(opened: Callable[[], IO[bytes]]) -> Content:
    """Makes the content of a file that is opened anew for each attempt."""

    async def pieces() -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(opened)
        try:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield data
        finally:
            file.close()

    return pieces


def version(info: os.stat_result) -> tuple[int, int, int]:
    """What tells one version of a file from another."""
    return info.st_ino, info.st_size, info.st_mtime_ns


def harmless_mode(mode: int) -> int:
    """Keeps the permission bits that are harmless: the owner may read and write, nobody else may write."""
    executable = 0o111 if mode & 0o100 else 0
    return (mode & (0o644 | executable)) | 0o600


def regular_files(root: Path) -> list[Path]:
    """Finds the files below a directory. Raises `InvalidRequest` for anything else than files and directories."""
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
