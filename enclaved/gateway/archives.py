"""Unpacks tar archives while they arrive: a chunk or two in memory, nothing on the daemon's disk.

The archive is a stranger's. Only regular files and directories are taken; names stay below the target; members, sizes
and names have bounds. What came before a member that is refused stays written.
"""

from __future__ import annotations

import bz2
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from enclaved.errors import InvalidRequest

MEMBERS_MAX: Final = 10_000
UNPACKED_BYTES_MAX: Final = 1024**3

_BLOCK = tarfile.BLOCKSIZE
_PIECE_BYTES = 256 * 1024
_HEADER_BYTES_MAX = 64 * 1024
_LZMA_BYTES_MAX = 128 * 1024 * 1024
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


class Target(Protocol):
    """Where an archive is unpacked to."""

    async def write(self, path: str, chunks: AsyncIterator[bytes], mode: int) -> None:
        """Writes a regular file, and makes the directories above it."""
        ...

    async def make_directories(self, paths: Sequence[str]) -> None:
        """Makes directories, and those above them."""
        ...


async def unpack(chunks: AsyncIterator[bytes], directory: str, target: Target) -> None:
    """Unpacks a tar archive (plain, gzip, bzip2 or xz) into ``directory``.

    Raises `InvalidRequest` for what is malformed, too large, or no file or directory below the target; what ``chunks``
    and ``target`` raise passes through.
    """
    reader = _Reader(_expanded(chunks))
    empty: dict[str, None] = {}
    filled: set[str] = set()
    async for member in _members(reader):
        path = posixpath.join(directory, member.name)
        if member.is_directory:
            empty[posixpath.normpath(path)] = None
            continue
        await target.write(path, reader.pieces(member.size), member.mode)
        filled.update(_parents(path))
        await reader.skip(-member.size % _BLOCK)
    wanted = [path for path in empty if path not in filled]
    if wanted:
        await target.make_directories(wanted)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    mode: int
    is_directory: bool


async def _members(reader: _Reader) -> AsyncIterator[_Member]:
    """Reads headers. Whoever takes a file reads its content, and the padding, before it asks for the next."""
    name: str | None = None
    size: int | None = None
    left_bytes = UNPACKED_BYTES_MAX
    for number in range(2 * MEMBERS_MAX):
        block = await reader.read(_BLOCK, may_end=True)
        if not block.strip(b"\0"):
            if number == 0 and not block:
                raise _malformed("it is empty")
            await reader.drain()
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _malformed(str(error)) from None
        if header.size < 0:
            raise _malformed("a member has a negative size")
        if header.type in (*_EXTENDED, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if header.size > _HEADER_BYTES_MAX:
                raise _malformed(f"a header has more than {_HEADER_BYTES_MAX} bytes")
            data = await reader.read(header.size)
            await reader.skip(-header.size % _BLOCK)
            if header.type in _EXTENDED:
                records = dict(_records(data))
                name, size = records.get("path", name), _size(records.get("size"), size)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(data.split(b"\0", 1)[0])
            continue
        member = _checked(header, header.name if name is None else name, header.size if size is None else size)
        name = size = None
        left_bytes -= member.size
        if left_bytes < 0:
            raise InvalidRequest.of("archive", f"unpacks to more than {UNPACKED_BYTES_MAX} bytes")
        yield member
    raise InvalidRequest.of("archive", f"has more than {MEMBERS_MAX} members")


def _checked(header: tarfile.TarInfo, name: str, size: int) -> _Member:
    _text(name.encode("utf-8", "surrogateescape"))  # not earlier: another header may have cut it in mid-character
    shown = ascii(name[:100])
    if not (header.isdir() or (header.isreg() and not header.issparse())):
        raise InvalidRequest.of("archive", f"{shown} is neither a regular file nor a directory; leave it out")
    plain = name.lstrip("/")
    if posixpath.normpath(plain or ".").split("/")[0] == "..":
        raise InvalidRequest.of("archive", f"{shown} leads out of the target directory")
    if "\0" in plain or (header.isreg() and (not plain or plain.endswith("/"))):
        raise InvalidRequest.of("archive", f"{shown} is no name of a file")
    # The owner may read and write, nobody else may write, and nothing runs with other rights.
    executable = 0o111 if header.mode & 0o100 else 0
    mode = (header.mode & (0o644 | executable)) | 0o600
    return _Member(plain, 0 if header.isdir() else size, mode, header.isdir())


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Reads the records of an extended header: ``LENGTH KEY=VALUE`` and a line break each."""
    while data.strip(b"\0"):
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _malformed("an extended header is damaged")
        if key.startswith(b"GNU.sparse"):
            raise InvalidRequest.of("archive", "holds a sparse file; pack it without --sparse")
        if key in (b"path", b"size"):
            yield key.decode(), _text(value[:-1])


def _size(text: str | None, before: int | None) -> int | None:
    if text is None:
        return before
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _malformed("a size is no number")
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _malformed("a name is not UTF-8") from None


def _parents(path: str) -> Iterator[str]:
    path = posixpath.normpath(path)
    while (parent := posixpath.dirname(path)) != path:
        yield parent
        path = parent


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest.of(
        "archive", f"cannot be read: {why}; send a tar archive, plain or packed by gzip, bzip2, xz"
    )


class _Reader:
    """Exact reads from chunks of any size."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    async def read(self, size: int, *, may_end: bool = False) -> bytes:
        """Reads so many bytes; none at all at the end, if there may be one."""
        parts = [piece async for piece in self.pieces(size, may_end=may_end)]
        return b"".join(parts)

    async def pieces(self, size: int, *, may_end: bool = False) -> AsyncIterator[bytes]:
        """Reads so many bytes as they come."""
        wanted = size
        while wanted:
            if not self._rest:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    if may_end and wanted == size:
                        return
                    raise _malformed("it ends too early")
                self._rest = memoryview(chunk)
            piece, self._rest = self._rest[:wanted], self._rest[wanted:]
            wanted -= len(piece)
            yield bytes(piece)

    async def skip(self, size: int) -> None:
        """Reads so many bytes and forgets them."""
        async for _ in self.pieces(size):
            pass

    async def drain(self) -> None:
        """Reads to the end, so that the sender can see its answer."""
        self._rest = memoryview(b"")
        async for _ in self._chunks:
            pass


# -- compression -------------------------------------------------------------------------------------------------


async def _expanded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Unpacks what gzip, bzip2 or xz packed, in pieces of bounded size; passes on what is not packed."""
    head = b""
    while len(head) < 6 and (chunk := await anext(chunks, None)) is not None:
        head += chunk
    expand = _expander(head)
    left_bytes = UNPACKED_BYTES_MAX + 4 * _BLOCK * MEMBERS_MAX
    data: bytes | None = head
    while data is not None:
        try:
            for piece in expand(data):
                left_bytes -= len(piece)
                if left_bytes < 0:
                    raise InvalidRequest.of("archive", f"unpacks to more than {UNPACKED_BYTES_MAX} bytes")
                yield piece
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise _malformed(str(error)) from None
        data = await anext(chunks, None)


def _expander(head: bytes) -> Callable[[bytes], Iterator[bytes]]:
    if head.startswith(b"\x1f\x8b"):
        return _gunzip()
    if head.startswith(b"BZh"):
        return _decompress(bz2.BZ2Decompressor())
    if head.startswith(b"\xfd7zXZ\0"):
        return _decompress(lzma.LZMADecompressor(memlimit=_LZMA_BYTES_MAX))
    return lambda data: iter((data,) if data else ())


def _gunzip() -> Callable[[bytes], Iterator[bytes]]:
    unpacker = zlib.decompressobj(wbits=31)

    def expand(data: bytes) -> Iterator[bytes]:
        while data and not unpacker.eof:
            if piece := unpacker.decompress(data, _PIECE_BYTES):
                yield piece
            data = unpacker.unconsumed_tail

    return expand


def _decompress(unpacker: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> Callable[[bytes], Iterator[bytes]]:
    def expand(data: bytes) -> Iterator[bytes]:
        while not unpacker.eof:
            if piece := unpacker.decompress(data, _PIECE_BYTES):
                yield piece
            if unpacker.needs_input:
                return
            data = b""

    return expand
