"""The bytes of an archive as it arrives, whatever it is packed with, in pieces of bounded size."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

UNPACKED_BYTES_MAX = 16 * 1024**3
HEADER_BYTES_MAX = 64 * 1024
_LZMA_BYTES_MAX = 128 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_HEADER_BYTES = 512
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"


class ArchiveRefused(OSError):
    """An archive that is malformed, too large or hostile."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EINVAL, why)


class Archive:
    """Exact reads from an archive that comes through a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks = self._expanded()
        self._rest = memoryview(b"")

    def read(self, size: int, may_end: bool = False) -> bytes:
        """Reads so many bytes; none at all at the end, if there may be one."""
        return b"".join(self.pieces(size, may_end))

    def pieces(self, size: int, may_end: bool = False) -> Iterator[bytes]:
        """Reads so many bytes as they come."""
        wanted = size
        while wanted:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    if may_end and wanted == size:
                        return
                    raise self.malformed("it ends too early")
                self._rest = memoryview(chunk)
            piece, self._rest = self._rest[:wanted], self._rest[wanted:]
            wanted -= len(piece)
            yield bytes(piece)

    def skip(self, size: int) -> None:
        """Reads so many bytes and forgets them."""
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Reads to the end, so that the sender can see its answer."""
        self._rest = memoryview(b"")
        for _ in self._chunks:
            pass

    def malformed(self, why: str) -> ArchiveRefused:
        """Makes the error for what is no archive."""
        return ArchiveRefused("cannot be read: %s; send a tar archive, plain or packed by gzip, bzip2, xz" % why)

    def _expanded(self) -> Iterator[bytes]:
        import zlib

        failures: Any = (zlib.error, OSError, EOFError)
        try:
            import lzma

            failures += (lzma.LZMAError,)
        except ImportError:  # an interpreter without it
            pass
        data = head = os.read(self._fd, _PIECE_BYTES)
        while len(head) < _HEADER_BYTES and data:
            data = os.read(self._fd, _PIECE_BYTES)
            head += data
        expand = self._expander(head)
        left = UNPACKED_BYTES_MAX + UNPACKED_BYTES_MAX // 8
        data = head
        while data:
            try:
                for piece in expand(data):
                    left -= len(piece)
                    if left < 0:
                        raise ArchiveRefused("unpacks to more than %d bytes" % UNPACKED_BYTES_MAX)
                    yield piece
            except ArchiveRefused:
                raise
            except failures as error:
                raise self.malformed(str(error)) from None
            data = os.read(self._fd, _PIECE_BYTES)

    def _expander(self, head: bytes) -> Callable[[bytes], Iterator[bytes]]:
        if _is_header(head[:_HEADER_BYTES]):  # whatever the first name begins with
            return lambda data: iter((data,))
        try:
            if head.startswith(_GZIP):
                import zlib

                return _Streams(lambda: _Gunzip(zlib.decompressobj(wbits=31)), _GZIP)
            if head.startswith(_BZIP2):
                import bz2

                return _Streams(bz2.BZ2Decompressor, _BZIP2)
            if head.startswith(_XZ):
                import lzma

                return _Streams(lambda: lzma.LZMADecompressor(memlimit=_LZMA_BYTES_MAX), _XZ)
        except ImportError:
            raise ArchiveRefused("the sandbox's Python cannot unpack this; send it plain or packed by gzip") from None
        return lambda data: iter((data,))


def _is_header(block: bytes) -> bool:
    """Whether a tar archive that is not packed begins so: its checksum says."""
    digits = block[148:156].strip(b" \0")
    if len(block) < _HEADER_BYTES or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block[:148]) + sum(block[156:]) + 8 * 32


class _Streams:
    """Packed streams one after the other, as programs make them that pack in parallel. What else follows is ignored."""

    def __init__(self, begin: Callable[[], Any], mark: bytes) -> None:
        self._begin, self._mark = begin, mark
        self._unpacker = begin()
        self._between = b""  # after a stream: what may begin the next one
        self._over = False

    def __call__(self, data: bytes) -> Iterator[bytes]:
        """Yields what this data unpacks to, in pieces."""
        while not self._over:
            if self._unpacker is None:
                self._between += data
                if len(self._between) < len(self._mark) and self._mark.startswith(self._between):
                    return
                self._over = not self._between.startswith(self._mark)
                self._unpacker = self._begin()
                data, self._between = self._between, b""
                continue
            piece = self._unpacker.decompress(data, _PIECE_BYTES)
            data = b""
            if piece:
                yield piece
            if self._unpacker.eof:
                data, self._unpacker = self._unpacker.unused_data, None
            elif self._unpacker.needs_input:
                return


class _Gunzip:
    """What zlib has, with the face of the other unpackers."""

    def __init__(self, unpacker: Any) -> None:
        self._unpacker = unpacker

    def decompress(self, data: bytes, size: int) -> bytes:
        """Unpacks at most so many bytes."""
        piece: bytes = self._unpacker.decompress(self._unpacker.unconsumed_tail + data, size)
        return piece

    @property
    def needs_input(self) -> bool:
        """Whether all it was given is unpacked."""
        return not self._unpacker.unconsumed_tail

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        return bool(self._unpacker.eof)

    @property
    def unused_data(self) -> bytes:
        """What came after the end."""
        found: bytes = self._unpacker.unused_data
        return found
