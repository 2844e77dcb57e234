"""Small files of /proc, read without surprise: what may not be read or is gone is just not there."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Optional, Tuple

NUMBERS_MAX = 4096


def text_of(path: str) -> Optional[str]:
    """What a small file in /proc says; None where it may not be read, or its process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.read(fd, 65536).decode("ascii", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def pairs(path: str) -> Iterator[Tuple[str, str]]:
    """The lines of a file that look like ``name: value``."""
    for line in (text_of(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip()


def numbers(folder: str) -> List[int]:
    """The entries of a folder that are numbers, in order; at most 4096."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())[:NUMBERS_MAX]
    except OSError:
        return []
