"""Terminals of programs: how one is made, sized, told the end of its input, and taken by its program."""

from __future__ import annotations

import fcntl
import os
import struct

from .libc import PR_SET_DUMPABLE, libc, prctl
from .limits import MAX_PAYLOAD_BYTES, TERMINAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

    from .execution import Execution

_TIOCGPTN = 0x80045430  # which terminal a master belongs to; the termios module knows neither
_TIOCSPTLCK = 0x40045431
_IUTF8 = 0o40000  # erasing takes away a whole character; nor does it know this
_SIDE_MAX = 65535


def open_terminal(uid: int, rows: int, columns: int) -> Tuple[int, int]:
    """Makes a terminal that belongs to a user and returns its two ends, ours (not blocking) and the program's.

    Raises OSError where there is no more room for terminals or descriptors.

    The kernel gives a new terminal to the file system user id of the process that opens its master. So this process,
    which may not change owners, takes the sandbox's user for that one id and for two calls: it is never looked at when
    another process wants to signal this one, trace it, or change its limits or its priority, as the effective user id
    would be. Without the C library the terminal stays root's, and its mode lets the sandbox's user open it.
    """
    import termios

    library = libc()
    if library is not None:
        library.setfsuid(uid)
    try:
        ours = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(ours, _TIOCSPTLCK, struct.pack("i", 0))
            (number,) = struct.unpack("i", fcntl.ioctl(ours, _TIOCGPTN, bytes(4)))
            theirs = os.open("/dev/pts/%d" % number, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            os.close(ours)
            raise
    finally:
        if library is not None:
            library.setfsuid(os.geteuid())
            prctl(PR_SET_DUMPABLE, 0)  # where the machine lets programs that change their user be looked into
    try:
        if library is None:
            os.fchmod(theirs, 0o666)
        os.set_blocking(ours, False)
        settings = termios.tcgetattr(theirs)
        settings[0] |= _IUTF8
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        resize_terminal(ours, rows, columns)
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def resize_terminal(ours: int, rows: int, columns: int) -> None:
    """Sets the size; where it changes the kernel tells the programs in the foreground (SIGWINCH)."""
    import termios

    size = struct.pack("HHHH", min(rows, _SIDE_MAX), min(columns, _SIDE_MAX), 0, 0)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, size)


def read_terminal(ours: int) -> bytes:
    """Reads what is there, at most one payload: the kernel gives no more than 4 KiB at once.

    Raises BlockingIOError if there is nothing now, and OSError (EIO) while no process has the terminal open.
    """
    data = b""
    while len(data) <= MAX_PAYLOAD_BYTES - 4096:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            if not data:
                raise
            break
        data += piece
        if not piece:
            break
    return data


def end_characters(ours: int, last: bytes) -> bytes:
    """What tells a program at a terminal that its input ends, when ``last`` came before.

    The end-of-file character ends a line that is not empty, and the input only after that.
    """
    import termios

    settings = termios.tcgetattr(ours)
    character: bytes = settings[6][termios.VEOF]
    in_line = bool(settings[3] & termios.ICANON) and last not in (b"", b"\n", character)
    return character * 2 if in_line else character


class Terminals:
    """Gives terminals to programs that want one, and sizes them."""

    def __init__(self, uid: int) -> None:
        self.uid = uid

    def open(self, execution: Execution, theirs: List[int]) -> None:
        """Makes the terminal of a program; its own ends, three times the same, are added to a list."""
        rows, columns = execution.terminal or (24, 80)
        ours, slave = open_terminal(self.uid, rows, columns)
        theirs.append(slave)
        execution.pipes[TERMINAL] = ours
        theirs.extend(os.dup(slave) for _ in range(2))  # if the second fails, the first is in the list
        execution.stdin_fd = os.dup(ours)  # what is watched for reading cannot be watched for writing by itself

    def on_resize(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Sets the size of a terminal, also of one that is still to be made. Others have no size."""
        rows, columns = int(header["rows"]), int(header["columns"])
        if not (0 < rows < 65536 and 0 < columns < 65536):
            raise ValueError("a terminal of %d rows and %d columns" % (rows, columns))
        if execution.terminal is not None:
            execution.terminal = rows, columns
            if TERMINAL in execution.pipes:
                resize_terminal(execution.pipes[TERMINAL], rows, columns)
