"""What only the C library can do."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
CAPABILITIES_MAX = 64
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


def said_by_prctl(name: bytes) -> Optional[int]:
    """What a line of a process's status would say, for kernels whose status lacks it, as gVisor's; None: not known."""
    library = libc()
    if library is None:
        return None
    if name == b"NoNewPrivs":
        found = int(library.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))
        return found if found >= 0 else None
    if name == b"CapAmb":
        # A kernel that knows no ambient capability, or not this one, refuses the question; then there is none.
        each = range(CAPABILITIES_MAX)
        return sum(1 << n for n in each if library.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, n, 0, 0) == 1)
    return None
