"""What file jobs write: lines of JSON that a sandbox sends, so every field of them is checked."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, TypeVar

from enclaved.errors import PathUnusable
from enclaved.model import ChangeKind, FileChange, FileInfo, FileType, SearchMatch, Unpacked

LINE_BYTES_MAX: Final = 1024 * 1024
PAGE_ENTRIES_MAX: Final = 256
PAGE_BYTES_MAX: Final = 1024 * 1024
LINE_CHARS_MAX: Final = 1000
LINK_BYTES_MAX: Final = 4096
_NUMBERS_BYTES: Final = 64
"""What a row has beside its texts."""

_SURROGATES = re.compile("[\ud800-\udfff]")

RowT = TypeVar("RowT")


class NotARow(ValueError):
    """A line that no file job of ours would write."""


async def rows(chunks: AsyncIterator[bytes], path: str) -> AsyncGenerator[Any, None]:
    """Yields the JSON value of each line. Raises `PathUnusable` for what is none."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise nonsense(path)
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise nonsense(path) from None
    if rest:
        raise nonsense(path)


def nonsense(path: str) -> PathUnusable:
    """Makes the error for an answer that makes no sense."""
    return PathUnusable(path, "the process that handled the file was disturbed by a program of the sandbox; try again")


def file_info(row: Any) -> FileInfo:
    """Reads a file, directory or link. Raises `NotARow`."""
    path, kind, size, mode, modified, uid, target = _fields(row, 7)
    if kind not in tuple(FileType):
        raise NotARow
    return FileInfo(
        _text(path),
        FileType(kind),
        _number(size, 2**63),
        _number(mode, 0o10000),
        _number(modified, 2**95, -(2**95)),  # files may have times that no message can carry
        _number(uid, 2**32),
        _text(target)[:LINK_BYTES_MAX],
    )


def file_change(row: Any) -> FileChange:
    """Reads a change. Raises `NotARow`."""
    kind, path, is_directory = _fields(row, 3)
    if kind not in tuple(ChangeKind) or not isinstance(is_directory, bool):
        raise NotARow
    return FileChange(ChangeKind(kind), _text(path), is_directory)


def search_match(row: Any) -> SearchMatch | None:
    """Reads a match; ``None`` for the mark that there are more. Raises `NotARow`."""
    if row == {"truncated": True}:
        return None
    path, line, text = _fields(row, 3)
    return SearchMatch(_text(path), _number(line, 2**63), _text(text)[:LINE_CHARS_MAX])


def unpacked(answer: bytes) -> Unpacked:
    """Reads what became of an archive. Raises `NotARow`."""
    try:
        found = json.loads(answer[:1000])
    except (ValueError, RecursionError):
        raise NotARow from None
    if not isinstance(found, dict):
        raise NotARow
    return Unpacked(_number(found.get("entries"), 2**63), _number(found.get("size_bytes"), 2**63))


def size_bytes(*texts: str) -> int:
    """How large a row of these texts is in a message, at most: a path may have many kilobytes."""
    return 4 * sum(map(len, texts)) + _NUMBERS_BYTES


async def pages(found: AsyncIterator[RowT], size_of: Callable[[RowT], int]) -> AsyncGenerator[tuple[RowT, ...], None]:
    """Puts rows together, as many as one message may carry. ``size_of``: how many bytes one has at most."""
    page: list[RowT] = []
    size = 0
    async for row in found:
        page.append(row)
        size += size_of(row)
        if len(page) >= PAGE_ENTRIES_MAX or size >= PAGE_BYTES_MAX:
            yield tuple(page)
            page, size = [], 0
    if page:
        yield tuple(page)


def _fields(row: Any, number: int) -> list[Any]:
    if not isinstance(row, list) or len(row) != number:
        raise NotARow
    return row


def _number(value: Any, limit: int, least: int = 0) -> int:
    if type(value) is not int or not least <= value < limit:
        raise NotARow
    return value


def _text(value: Any) -> str:
    """Text for a message: bytes of a name that are not UTF-8 come as surrogates, which a message cannot carry."""
    if not isinstance(value, str):
        raise NotARow
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", value)
