"""Whether SQLite's log of writes still has everything that was written to it.

SQLite takes a frame that is damaged for the end of the log, as it must after a loss of power, and drops what follows
without a word. But where only the process was killed, its index of the log (``-shm``) still says how much there was.
The layout of both files is part of SQLite's documented file format.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_INDEX_BYTES: Final = 100
_INDEX: Final = struct.Struct("=12xBxHI12x8s")
"""Of a header of the index: whether it is in use, the size of a page, the last frame, and the salts of the log."""
_HEADER_BYTES: Final = 48
_BACKFILLED: Final = struct.Struct("=96xI")
_LOG_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_LITTLE: Final = 0x377F0682
"""Begins a log whose checksums are those of a little-endian machine."""
_LARGEST_PAGE: Final = 65536
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Promise:
    """What the index says of the log."""

    frames: int
    page_bytes: int
    salts: bytes


def missing_frames(database: Path) -> int:
    """Tells how many frames were written to the log and are not in it any more, or not whole.

    0 where nobody can know: the daemon ended properly, or the machine was started anew since. To be asked before the
    database is opened, which mends the index. Blocks. Raises `OSError`.
    """
    promise = _promise(database.with_name(f"{database.name}-shm"))
    if promise is None:
        return 0
    try:
        log = database.with_name(f"{database.name}-wal").read_bytes()
    except FileNotFoundError:
        log = b""
    return promise.frames - _whole_frames(log, promise)


def _promise(index: Path) -> _Promise | None:
    try:
        with index.open("rb") as file:
            head, written_at = file.read(_INDEX_BYTES), index.stat().st_mtime
    except FileNotFoundError:
        return None
    booted_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    if len(head) < _INDEX_BYTES or written_at < booted_at:
        return None
    one, other = head[:_HEADER_BYTES], head[_HEADER_BYTES : 2 * _HEADER_BYTES]
    in_use, page_size, frames, salts = _INDEX.unpack_from(one)
    (backfilled,) = _BACKFILLED.unpack_from(head)
    if one != other or in_use != 1 or frames <= backfilled:
        return None  # it was about to change, or the main file has everything
    return _Promise(frames, page_size if page_size > 1 else _LARGEST_PAGE, salts)


def _whole_frames(log: bytes, promise: _Promise) -> int:
    """How many frames from the beginning on are as they were written, of as many as were promised."""
    if len(log) < _LOG_HEADER or log[16:24] != promise.salts:
        return 0
    (magic,) = struct.unpack_from(">I", log)
    if magic != _LITTLE:
        return promise.frames if magic == _LITTLE + 1 else 0  # of another kind of machine: not for us to judge
    sums = _checksum(log[:24], (0, 0))
    if sums != struct.unpack_from(">II", log, 24):
        return 0
    size, frames = _FRAME_HEADER + promise.page_bytes, 0
    for start in range(_LOG_HEADER, min(len(log), _LOG_HEADER + size * promise.frames), size):
        frame = log[start : start + size]
        if len(frame) < size or frame[8:16] != promise.salts:
            break
        sums = _checksum(frame[_FRAME_HEADER:], _checksum(frame[:8], sums))
        if sums != struct.unpack_from(">II", frame, 16):
            break
        frames += 1
    return frames


def _checksum(data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, other in struct.iter_unpack("<II", data):
        first = (first + one + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second
