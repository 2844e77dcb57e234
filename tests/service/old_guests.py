"""Guests of earlier versions: that of protocol version 1 as it was, and one that only says that it is older."""

from __future__ import annotations

import lzma
from pathlib import Path

_FOLDER = Path(__file__).parent


def old_guest(version: int) -> bytes:
    """The guest that speaks this version, as one file: 1, or 0, which is 1 under another number."""
    source = lzma.decompress((_FOLDER / "guest-1.py.xz").read_bytes())
    wanted = b"PROTOCOL_VERSION = %d\n" % version
    assert source.count(b"PROTOCOL_VERSION = 1\n") == 1
    return source.replace(b"PROTOCOL_VERSION = 1\n", wanted)
