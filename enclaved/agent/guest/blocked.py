"""What a thread is blocked for, as its own user may learn it from /proc/PID/{syscall,wchan,fd,mem}."""

from __future__ import annotations

import fcntl
import os
import struct

from .procfs import numbers, pairs, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple

THREADS_MAX = 1024
DESCRIPTORS_MAX = 4096

# What a thread does that is blocked, by machine and number: how the call names the descriptors that it waits for.
CALLS = {
    "x86_64": {
        **dict.fromkeys((0, 17, 19, 295, 327, 275, 276), "first"),  # read, pread64, readv, preadv(2), splice, tee
        40: "second",  # sendfile
        **dict.fromkeys((7, 271), "poll"),  # poll, ppoll
        **dict.fromkeys((23, 270), "select"),  # select, pselect6
        **dict.fromkeys((232, 281, 441), "epoll"),  # epoll_wait, epoll_pwait, epoll_pwait2
        219: "poll",  # restart_syscall: a poll that was stopped and continued; the arguments are still there
    },
    "aarch64": {
        **dict.fromkeys((63, 67, 65, 69, 286, 76, 77), "first"),
        71: "second",
        73: "poll",
        72: "select",
        **dict.fromkeys((22, 441), "epoll"),
        128: "poll",
    },
}
_ADDRESS = (1 << 56) - 1  # arm64 programs may keep a tag in the highest byte
_READ_EVENTS = 0x1 | 0x40  # POLLIN, POLLRDNORM; the same bits in epoll
_WRITE_EVENTS = 0x4 | 0x100
_TERMIOS = struct.Struct("4I32x")  # flags of input, output, control and line editing
_TCGETS = 0x5401
_ICANON = 0x2
_HELPERS = ("anon_inode:[eventfd]", "anon_inode:[signalfd]", "anon_inode:[timerfd]", "anon_inode:inotify")


class Target:
    """What a program may wait for: the pipe that is its standard input, or its terminal."""

    def __init__(self, kind: str, number: int) -> None:
        """``kind`` is ``pipe`` (``number``: the inode) or ``terminal`` (``number``: the device)."""
        self.kind, self.number = kind, number

    def is_at(self, pid: int, path: str, link: str) -> bool:
        """Whether a descriptor of a process, given by its path in /proc, is this."""
        if self.kind == "pipe":
            return link == "pipe:[%d]" % self.number
        if link == "/dev/tty":
            return _terminal_of(pid)[0] == self.number
        if not link.startswith("/dev/"):
            return False
        try:
            return os.stat(path).st_rdev == self.number
        except OSError:
            return False


def awaits_input(pids: List[int], target: Target) -> bool:
    """Whether a thread of these processes is blocked until something comes from the target.

    In doubt it says no: where a thread waits for several things, one of which could be a program that computes.
    """
    threads = 0
    for pid in pids:
        for thread in numbers("/proc/%d/task" % pid):
            threads += 1
            if threads > THREADS_MAX:
                return False
            if _thread_waits(pid, "/proc/%d/task/%d" % (pid, thread), target):
                return True
    return False


def _thread_waits(pid: int, folder: str, target: Target) -> bool:
    calls = CALLS.get(os.uname().machine)
    text = text_of(folder + "/syscall") if calls is not None else None
    if text is None:
        return _seems_to_wait(pid, folder, target)
    fields = text.split()
    if calls is None or len(fields) < 7:  # it runs, or is not in a system call
        return False
    kind = calls.get(int(fields[0]))
    arguments = [int(field, 16) for field in fields[1:7]]
    if kind == "first" or kind == "second":
        return _Descriptors(pid, folder, target).is_target(arguments[kind == "second"] & 0xFFFFFFFF)
    try:
        if kind == "poll":
            wanted = _polled(folder, arguments)
        elif kind == "select":
            wanted = _selected(folder, arguments)
        elif kind == "epoll":
            wanted = _registered(folder, arguments[0] & 0xFFFFFFFF)
        else:
            return False
    except OSError:
        return False
    return _Descriptors(pid, folder, target).only_target(wanted)


class _Descriptors:
    """The descriptors of one thread, looked at as far as they are asked for."""

    def __init__(self, pid: int, folder: str, target: Target) -> None:
        self.pid, self.folder, self.target = pid, folder, target

    def link(self, fd: int) -> str:
        try:
            return os.readlink("%s/fd/%d" % (self.folder, fd))
        except OSError:
            return ""

    def is_target(self, fd: int) -> bool:
        return self.target.is_at(self.pid, "%s/fd/%d" % (self.folder, fd), self.link(fd))

    def only_target(self, wanted: Dict[int, bool]) -> bool:
        """Whether a wait for these (descriptor: for reading only) is one for the target.

        Beside it there may be what a program wakes itself with. Anything else could be what it really waits for.
        """
        readers = {fd for fd, reading in wanted.items() if reading and self.is_target(fd)}
        if not readers:
            return False
        own: Optional[List[str]] = None
        for fd in wanted:
            link = self.link(fd)
            if fd in readers or link in _HELPERS or self.is_target(fd):
                continue
            if own is None:
                own = [self.link(other) for other in numbers(self.folder + "/fd")]
            if not _wakes_itself(link, own):
                return False
        return True

    def sources(self) -> List[int]:
        """Descriptors from which something could come: pipes that can be read, sockets, terminals, and the like."""
        found = []
        for fd in numbers(self.folder + "/fd"):
            link = self.link(fd)
            if link.startswith("/") and not link.startswith("/dev/"):
                continue
            if link in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
                continue
            if link.startswith("pipe:") and self.is_write_only(fd):
                continue
            found.append(fd)
        return found

    def is_write_only(self, fd: int) -> bool:
        for name, value in pairs("%s/fdinfo/%d" % (self.folder, fd)):
            if name == "flags":
                return int(value, 8) & os.O_ACCMODE == os.O_WRONLY
        return False


def _wakes_itself(link: str, own: List[str]) -> bool:
    """Whether both ends of a pipe or socket pair are in the same process, as event loops have them."""
    if link.startswith("pipe:"):
        return own.count(link) > 1
    if link.startswith("socket:["):
        number = int(link[8:-1])
        return "socket:[%d]" % (number + 1) in own or "socket:[%d]" % (number - 1) in own
    return False


def _polled(folder: str, arguments: List[int]) -> Dict[int, bool]:
    """The descriptors of a poll, and whether each is waited for only to read from it."""
    wanted: Dict[int, bool] = {}
    count = min(arguments[1], DESCRIPTORS_MAX)
    data = _memory(folder, arguments[0], 8 * count)
    for start in range(0, len(data) - 7, 8):
        fd = int.from_bytes(data[start : start + 4], "little", signed=True)
        events = int.from_bytes(data[start + 4 : start + 6], "little")
        if fd >= 0:
            _want(wanted, fd, events)
    return wanted


def _selected(folder: str, arguments: List[int]) -> Dict[int, bool]:
    wanted: Dict[int, bool] = {}
    count = min(arguments[0] & 0xFFFFFFFF, DESCRIPTORS_MAX)
    for events, address in ((0x1, arguments[1]), (0x4, arguments[2])):
        if address & _ADDRESS:
            bits = int.from_bytes(_memory(folder, address, (count + 63) // 64 * 8), "little")
            for fd in range(count):
                if bits >> fd & 1:
                    _want(wanted, fd, events)
    return wanted


def _registered(folder: str, epoll_fd: int) -> Dict[int, bool]:
    wanted: Dict[int, bool] = {}
    for name, value in pairs("%s/fdinfo/%d" % (folder, epoll_fd)):
        if name == "tfd":
            words = value.split()
            _want(wanted, int(words[0]), int(words[2], 16))
        if len(wanted) > DESCRIPTORS_MAX:
            break
    return wanted


def _want(wanted: Dict[int, bool], fd: int, events: int) -> None:
    if events & (_READ_EVENTS | _WRITE_EVENTS):  # else it waits only for the other side to go away
        wanted[fd] = wanted.get(fd, True) and not events & _WRITE_EVENTS


def _memory(folder: str, address: int, size: int) -> bytes:
    fd = os.open(folder + "/mem", os.O_RDONLY)
    try:
        return os.pread(fd, size, address & _ADDRESS)
    finally:
        os.close(fd)


def _seems_to_wait(pid: int, folder: str, target: Target) -> bool:
    """Decides by the kernel function in which a thread sleeps, where its system call may not be read.

    That says what kind of thing it waits for, not which. So it counts only if there is nothing else of the kind.
    """
    where = (text_of(folder + "/wchan") or "").split(".")[0]
    descriptors = _Descriptors(pid, folder, target)
    if target.kind == "pipe":
        if where not in ("pipe_read", "anon_pipe_read", "pipe_wait_readable", "pipe_wait"):
            return False
        sources = [fd for fd in descriptors.sources() if descriptors.link(fd).startswith("pipe:")]
        if where == "pipe_wait" and _writes_pipes(descriptors):  # old kernels: for room as well
            return False
        return bool(sources) and all(descriptors.is_target(fd) for fd in sources)
    if where in ("n_tty_read", "wait_woken"):
        sources = [fd for fd in descriptors.sources() if descriptors.link(fd).startswith(("socket:", "/dev/"))]
        return bool(sources) and all(descriptors.is_target(fd) for fd in sources)
    if where in ("do_select", "do_sys_poll", "do_poll", "poll_schedule_timeout"):
        # A sleep looks the same. But who has taken the terminal's line editing over waits for keys.
        sources = descriptors.sources()
        in_front = _terminal_of(pid)[1]
        return bool(sources) and in_front and all(map(descriptors.is_target, sources)) and _is_raw(folder, sources[0])
    return False


def _writes_pipes(descriptors: _Descriptors) -> bool:
    for fd in numbers(descriptors.folder + "/fd"):
        if descriptors.link(fd).startswith("pipe:") and descriptors.is_write_only(fd):
            return True
    return False


def _is_raw(folder: str, fd: int) -> bool:
    """Whether a terminal gives out single keys instead of lines."""
    try:
        terminal = os.open("%s/fd/%d" % (folder, fd), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        settings = fcntl.ioctl(terminal, _TCGETS, bytes(_TERMIOS.size))
        return not _TERMIOS.unpack(settings)[3] & _ICANON
    except OSError:
        return False
    finally:
        os.close(terminal)


def _terminal_of(pid: int) -> Tuple[int, bool]:
    """The controlling terminal of a process (0: none), and whether its group is in front there."""
    text = text_of("/proc/%d/stat" % pid)
    if text is None:
        return 0, False
    fields = text[text.rindex(")") + 2 :].split()
    number = int(fields[4])
    device = os.makedev(number >> 8 & 0xFFF, (number & 0xFF) | (number >> 12 & 0xFFF00))
    return device if number else 0, fields[2] == fields[5]
