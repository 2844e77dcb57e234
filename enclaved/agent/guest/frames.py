"""The codec of frames, the same for both sides.

A frame is: length of header and payload together (4 bytes, big-endian), length of the header (2 bytes), header
(a JSON object with "type"), payload (raw bytes).
"""

from __future__ import annotations

import json
import struct

from .limits import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

_PREFIX = struct.Struct(">IH")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes an encoder each time
_DECODE = json.JSONDecoder().decode


class FrameError(Exception):
    """The peer sent what is no frame. The connection cannot be used any more."""


def encode_frame(header: Dict[str, Any], payload: bytes = b"") -> bytes:
    """Makes one frame. Raises ValueError if it would be larger than the peer accepts."""
    text = _ENCODE(header).encode()
    if len(text) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError("frame too large: header %d bytes, payload %d bytes" % (len(text), len(payload)))
    return _PREFIX.pack(len(text) + len(payload), len(text)) + text + payload


class FrameDecoder:
    """Cuts a byte stream into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Tuple[Dict[str, Any], bytes]]:
        """Takes the next bytes and returns the frames that they complete. Raises FrameError."""
        self._buffer += data
        frames = []
        start = 0
        try:
            while len(self._buffer) - start >= _PREFIX.size:
                length, header_length = _PREFIX.unpack_from(self._buffer, start)
                if header_length > MAX_HEADER_BYTES or header_length > length:
                    raise FrameError("header of %d bytes in a frame of %d" % (header_length, length))
                if length - header_length > MAX_PAYLOAD_BYTES:
                    raise FrameError("payload of %d bytes" % (length - header_length))
                end = start + _PREFIX.size + length
                if len(self._buffer) < end:
                    break
                middle = start + _PREFIX.size + header_length
                frames.append((_header(bytes(self._buffer[end - length : middle])), bytes(self._buffer[middle:end])))
                start = end
        finally:
            del self._buffer[:start]
        return frames


def _header(text: bytes) -> Dict[str, Any]:
    try:
        header = _DECODE(text.decode())
    except (ValueError, RecursionError) as error:
        raise FrameError("header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise FrameError("header has no type")
    return header
