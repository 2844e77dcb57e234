"""How a job and its descriptors come to a child."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple

# Before a job: how many bytes it has, what is special about it, and when it was sent.
HEADER = struct.Struct(">IBd")

IN_CONTEXT = 1
AT_TERMINAL = 2
SAY_BEGUN = 4  # claim `begun` before user code runs: until then no signal is sent

DEFAULT_TERM = "xterm-256color"  # where the environment of a job names none


class Handed:
    """A job as it comes to a child, with its three descriptors."""

    __slots__ = ("fds", "flags", "sent_at", "text")

    def __init__(self, text: bytes, flags: int, sent_at: float, fds: List[int]) -> None:
        self.text, self.flags, self.sent_at, self.fds = text, flags, sent_at, fds


def receive_fds(sock: socket.socket, size: int, count: int) -> Tuple[bytes, List[int]]:
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(count * 4))
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return data, list(fds)


def receive_job(control: socket.socket) -> Handed:
    """Waits for the bytes of a job and its three descriptors. The end of the guest is the end of this process."""
    try:
        data, fds = receive_fds(control, 64 * 1024, 3)
        size = HEADER.size
        while data and (len(data) < size or len(data) < size + HEADER.unpack_from(data)[0]):
            more = control.recv(1024 * 1024)
            data = data + more if more else b""
    except OSError:
        data = b""
    if not data:
        os._exit(0)
    _, flags, sent_at = HEADER.unpack_from(data)
    return Handed(data[HEADER.size :], flags, sent_at, fds)


def install(fds: List[int]) -> None:
    """Makes three descriptors the standard ones. They may be standard ones already, where a program closed those."""
    high = [fd if fd > 2 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds]
    for target, fd in enumerate(high):
        os.dup2(fd, target)
        os.close(fd)


def take_terminal() -> None:
    """Makes standard input the controlling terminal of this process, which leads its session. Raises OSError."""
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
