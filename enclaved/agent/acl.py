"""Access lists of files (POSIX ACLs), as far as sockets for guests need them; standard library only."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Final

_ATTRIBUTE: Final = "system.posix_acl_access"
_VERSION: Final = 2
_NOBODY: Final = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_EXECUTE: Final = 1
_READ_WRITE: Final = 6


def let_enter(directory: Path, uid: int) -> None:
    """Lets one more user go through a directory, without listing it. Raises ``OSError``."""
    _let(directory, uid, _EXECUTE)


def let_connect(path: Path, uid: int) -> None:
    """Lets one more user connect to a socket. Raises ``OSError``."""
    _let(path, uid, _READ_WRITE)


def _let(path: Path, uid: int, permissions: int) -> None:
    """Replaces the list of a file by one of its mode and this user."""
    mode = stat.S_IMODE(path.stat().st_mode)
    group = mode >> 3 & 7
    entries = [
        (_USER_OBJ, mode >> 6 & 7, _NOBODY),
        (_USER, permissions, uid),
        (_GROUP_OBJ, group, _NOBODY),
        (_MASK, group | permissions, _NOBODY),
        (_OTHER, mode & 7, _NOBODY),
    ]
    listed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, _ATTRIBUTE, struct.pack("<I", _VERSION) + listed)


def who_may_enter(directory: Path) -> int | None:
    """The user that `let_enter` let into a directory; ``None`` if that was nobody, or cannot be seen."""
    try:
        found = os.getxattr(directory, _ATTRIBUTE)
    except OSError:
        return None
    entries = struct.iter_unpack("<HHI", found[4 : 4 + (len(found) - 4) // 8 * 8])
    return next((uid for tag, _, uid in entries if tag == _USER), None)
