"""What only the C library can do."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_LIBC: List[Any] = []  # once it is loaded


def libc() -> Any:
    """The C library; None where the interpreter has no ctypes. The template loads it for all children."""
    if not _LIBC:
        try:
            import ctypes
        except ImportError:
            return None
        _LIBC.append(ctypes.CDLL(None, use_errno=True))
    return _LIBC[0]


def prctl(option: int, value: int) -> None:
    """Calls prctl(2) where there is the library; the container's own settings hold without it."""
    library = libc()
    if library is not None:
        library.prctl(option, value, 0, 0, 0)
