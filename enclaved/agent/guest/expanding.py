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
        while len(head) < 6 and data:
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
        try:
            if head.startswith(b"\x1f\x8b"):
                return _gunzip()
            if head.startswith(b"BZh"):
                import bz2

                return _decompress(bz2.BZ2Decompressor())
            if head.startswith(b"\xfd7zXZ\0"):
                import lzma

                return _decompress(lzma.LZMADecompressor(memlimit=_LZMA_BYTES_MAX))
        except ImportError:
            raise ArchiveRefused("the sandbox's Python cannot unpack this; send it plain or packed by gzip") from None
        return lambda data: iter((data,))


def _gunzip() -> Callable[[bytes], Iterator[bytes]]:
    import zlib

    unpacker = zlib.decompressobj(wbits=31)

    def expand(data: bytes) -> Iterator[bytes]:
        while data and not unpacker.eof:
            piece = unpacker.decompress(data, _PIECE_BYTES)
            if piece:
                yield piece
            data = unpacker.unconsumed_tail

    return expand


def _decompress(unpacker: Any) -> Callable[[bytes], Iterator[bytes]]:
    def expand(data: bytes) -> Iterator[bytes]:
        while not unpacker.eof:
            piece = unpacker.decompress(data, _PIECE_BYTES)
            if piece:
                yield piece
            if unpacker.needs_input:
                return
            data = b""

    return expand
