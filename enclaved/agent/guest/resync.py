"""Frames over a byte stream that breaks and is taken up again somewhere else, such as an attach to PID 1.

Neither side of such a stream sees the other leave: half a frame may lie in the pipe when the next daemon comes, and
what PID 1 says while nobody is attached is lost. So a daemon opens the stream with an *opening*: fill, as long as the
largest envelope, which ends whatever was begun; a mark; and a fresh nonce. From there on what the daemon says goes
in *envelopes* (nonce, length, checksum), so that half a frame that was filled up is never taken for one. The guest
answers with the mark and the nonce, and goes on with plain frames; the daemon drops all that comes before.
"""

from __future__ import annotations

import struct
import zlib

from .limits import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Union

MARK = b"\x00ms-enclave/attach\x00"
NONCE_BYTES = 16
_ENVELOPE = struct.Struct(">16sII")  # nonce, length and checksum of the frame
_FRAME_MOST = 6 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
_FILL = b"\xff" * (_ENVELOPE.size + _FRAME_MOST)
BROKEN = b"\xff" * 6
"""What the guest says when it drops a daemon: no frame begins like this."""
_BEGINNING = _FILL + MARK  # longer than a frame, so that no payload of half a frame can imitate it


def opening(nonce: bytes) -> bytes:
    """What a daemon says first. Raises ValueError for a nonce of another length."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError("a nonce has %d bytes" % NONCE_BYTES)
    return _BEGINNING + nonce


def answer(nonce: bytes) -> bytes:
    """What the guest says first to a daemon that has opened the stream."""
    return MARK + nonce


def seal(nonce: bytes, frame: bytes) -> bytes:
    """Puts a frame of the daemon, or a part of some frames, into an envelope."""
    return _ENVELOPE.pack(nonce, len(frame), zlib.crc32(frame)) + frame


class Opening:
    """A daemon has opened the stream with this nonce."""

    __slots__ = ("nonce",)

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce


class Opener:
    """The guest's side: takes envelopes out of the stream. Holds at most one envelope or opening that is incomplete.

    ``nonce`` is that of the daemon that speaks; None while there is none, or its words came apart.
    """

    def __init__(self) -> None:
        self.nonce: Optional[bytes] = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Union[bytes, Opening]]:
        """Takes the next bytes; returns the frames and openings that they complete."""
        self._buffer += data
        found: List[Union[bytes, Opening]] = []
        while self._find_opening(found) if self.nonce is None else self._take_frame(found):
            pass
        return found

    def _find_opening(self, found: List[Union[bytes, Opening]]) -> bool:
        start = self._buffer.find(_BEGINNING)
        if start < 0:
            del self._buffer[: max(0, len(self._buffer) - len(_BEGINNING) + 1)]  # it may have begun
            return False
        end = start + len(_BEGINNING) + NONCE_BYTES
        if len(self._buffer) < end:
            del self._buffer[:start]
            return False
        self.nonce = bytes(self._buffer[end - NONCE_BYTES : end])
        del self._buffer[:end]
        found.append(Opening(self.nonce))
        return True

    def _take_frame(self, found: List[Union[bytes, Opening]]) -> bool:
        if len(self._buffer) < _ENVELOPE.size:
            return False
        nonce, length, checksum = _ENVELOPE.unpack_from(self._buffer)
        end = _ENVELOPE.size + length
        if nonce == self.nonce and length <= _FRAME_MOST:
            if len(self._buffer) < end:
                return False
            frame = bytes(self._buffer[_ENVELOPE.size : end])
            if zlib.crc32(frame) == checksum:
                del self._buffer[:end]
                found.append(frame)
                return True
        self.nonce = None  # its words came apart, or it is gone and another one opens
        return True


class Awaited:
    """The daemon's side: drops what was meant for others, and passes on what follows the answer to its nonce."""

    def __init__(self, nonce: bytes) -> None:
        self.answered = False
        self._answer = answer(nonce)
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes; returns those of frames."""
        if self.answered:
            return data
        data = self._tail + data
        start = data.find(self._answer)
        if start < 0:
            self._tail = data[max(0, len(data) - len(self._answer) + 1) :]
            return b""
        self.answered, self._tail = True, b""
        return data[start + len(self._answer) :]
