"""From the pipes of programs to their journals."""

from __future__ import annotations

import fcntl
import os
import struct
import time

from .descriptors import let_all_open
from .limits import FIRST_BYTES, LARGE_PIPE_BYTES, MAX_PAYLOAD_BYTES, RETRY_S, STDERR, STDOUT, TERMINAL
from .loop import READABLE
from .terminal import read_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .execution import Execution
    from .late import Late
    from .link import Link
    from .loop import Loop
    from .readers import Readers
    from .room import Room

_F_SETPIPE_SZ = 1031
_FIONREAD = 0x541B


class Output:
    """Reads what programs write, as long as there is room for it: then they wait.

    ``on_limit`` is set by whoever puts the guest together; it ends a program that wrote more than it may.
    """

    on_limit: Callable[[Execution], None]

    def __init__(self, loop: Loop, link: Link, readers: Readers, room: Room) -> None:
        self.loop, self.link, self.readers, self.room = loop, link, readers, room
        self.paused: Dict[str, Execution] = {}  # wait for room in their journal

    def open(self, execution: Execution, theirs: List[int]) -> None:
        """Makes the pipes of a program; its own ends are added to a list in the order of their numbers."""
        for channel in (STDOUT, STDERR):
            if channel == STDERR and execution.merge_stderr:
                theirs.append(os.dup(theirs[STDOUT]))
                continue
            read_end, write_end = os.pipe()
            theirs.append(write_end)
            execution.pipes[channel] = read_end
            os.set_blocking(read_end, False)
            let_all_open(write_end, 0o222)  # for /dev/stdout and /dev/stderr

    def watch(self, execution: Execution) -> None:
        """Starts to read all pipes of a program."""
        self.room.reserve(execution)
        for channel in execution.pipes:
            self.watch_pipe(execution, channel)

    def watch_pipe(self, execution: Execution, channel: int) -> None:
        """Reads a pipe whenever something is in it."""
        fd = execution.pipes[channel]
        self.loop.watch(fd, READABLE, lambda _: self.on_output(execution, channel))

    def on_output(self, execution: Execution, channel: int) -> None:
        """Reads a pipe, unless there is no room: then the program waits, but for one whose last output is kept."""
        most_bytes = MAX_PAYLOAD_BYTES
        if execution.journal.keep_last_bytes is None:
            most_bytes = self.room.may_read(execution)
        if not most_bytes:
            execution.paused.add(channel)
            self.paused[execution.name] = execution
            self.loop.unwatch(execution.pipes[channel])
            if not execution.told_full:
                self.tell_full(execution)
            return
        if self.read_pipe(execution, channel, most_bytes):
            return
        if channel == TERMINAL:
            # Closing it would kill the program (SIGHUP), which may open it again. No event tells when it does.
            self.loop.unwatch(execution.pipes[channel])
            self.loop.after(RETRY_S, lambda: self.resume(execution, channel))
        else:
            self.close_pipe(execution, channel)

    def tell_full(self, execution: Execution) -> None:
        """Says that a program waits for room, and where its output stops until then."""
        execution.told_full = True
        ends = {str(channel): end for channel, end in execution.journal.end.items()}
        self.link.send({"type": "full", "execution": execution.name, "offsets": ends})
        self.readers.note(execution)

    def read_pipe(self, execution: Execution, channel: int, most_bytes: int = MAX_PAYLOAD_BYTES) -> int:
        """Moves one piece from a pipe to the journal; 0 at its end, -1 if there is nothing now.

        The end of a terminal is that no process has it open.
        """
        fd = execution.pipes[channel]
        try:
            data = read_terminal(fd) if channel == TERMINAL else os.read(fd, min(most_bytes, MAX_PAYLOAD_BYTES))
        except BlockingIOError:
            return -1
        except OSError:
            data = b""
        if not data:
            return 0
        if len(data) == MAX_PAYLOAD_BYTES and channel != TERMINAL:
            self.room.enlarge(execution, channel)
        self.keep(execution, channel, data)
        return len(data)

    def keep(self, execution: Execution, channel: int, data: bytes) -> None:
        """Adds output to the journal of its program, up to the program's limit."""
        now = time.monotonic()
        execution.idle_since = self.loop.now()
        if execution.output_limit is not None:
            written = sum(execution.journal.end.values()) - execution.late_bytes
            kept = data[: max(0, execution.output_limit - written)]
            if len(kept) < len(data):
                self.on_limit(execution)
            data = kept
        if data:
            self.append(execution, channel, data, now - execution.times["running"])

    def keep_late(self, execution: Execution, channel: int, data: bytes) -> None:
        """Adds what was written before an execution to its journal, as far as there is room for such."""
        data = data[: max(0, self.room.free_bytes())]
        if not data:
            return
        execution.late_bytes += len(data)
        self.append(execution, channel, data, 0.0, late=True)

    def append(self, execution: Execution, channel: int, data: bytes, time_s: float, late: bool = False) -> None:
        """Adds to a journal. Where the sandbox has no room, one that keeps the last output makes it of its own."""
        journal = execution.journal
        before = journal.size
        journal.append(channel, data, time_s, late)
        self.room.journal_bytes += journal.size - before
        if journal.keep_last_bytes is not None and journal.size > before and self.room.make(0) < 0:
            grown = journal.size
            journal.shrink(max(before, FIRST_BYTES))
            self.room.journal_bytes -= grown - journal.size
        self.readers.note(execution)

    def drain(self, execution: Execution) -> None:
        """Takes the last output of a program.

        Whoever may write here is dead or has said that it is done, so what is in a pipe now is all there is. Whatever
        threads of a context still write is not of this call any more. There is room for it: see `Room.reserve`.
        """
        for channel, fd in execution.pipes.items():
            left = 2 * LARGE_PIPE_BYTES
            if channel != TERMINAL:  # which does not tell; nobody who could fill it lives
                (left,) = struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, bytes(4)))
            while left > 0:
                read = self.read_pipe(execution, channel, left)
                if read <= 0:
                    break
                left -= read
        self.paused.pop(execution.name, None)
        self.room.on_ended(execution)

    def hand_over(self, execution: Execution, late: Late, lives: bool) -> None:
        """Leaves the pipes of a call that has ended to what its context, if that lives, still writes to them."""
        if not lives:
            late.follow({})
            return
        for channel in execution.large_pipes & set(execution.pipes):
            try:
                fcntl.fcntl(execution.pipes[channel], _F_SETPIPE_SZ, MAX_PAYLOAD_BYTES)
            except OSError:  # there is more in it
                pass
        pipes, execution.pipes = execution.pipes, {}
        late.follow(pipes)

    def close(self, execution: Execution) -> None:
        """Closes the pipes of a program."""
        self.room.unreserve(execution)
        for channel in list(execution.pipes):
            self.close_pipe(execution, channel)

    def close_pipe(self, execution: Execution, channel: int) -> None:
        """Closes one pipe; one that is closed already is fine."""
        fd = execution.pipes.pop(channel, None)
        if fd is not None:
            self.loop.unwatch(fd)
            os.close(fd)

    def on_acknowledge(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Releases output that has arrived."""
        before = execution.journal.size
        for name, offset in header["offsets"].items():
            execution.journal.acknowledge(int(name), int(offset))
        self.room.journal_bytes -= before - execution.journal.size
        if execution.readers:
            self.readers.note(execution)  # one that has not seen what went now may be at its end
        self.resume_paused()

    def on_may_go(self, execution: Execution) -> None:
        """Nobody needs the output of an execution that has ended: it gives way where there is no room."""
        self.room.on_may_go(execution)
        self.resume_paused()

    def release(self, execution: Execution) -> None:
        """Frees the room of an execution that is forgotten."""
        self.room.release(execution)
        self.paused.pop(execution.name, None)
        self.resume_paused()

    def resume_paused(self) -> None:
        """Reads pipes again that had to wait for room."""
        for execution in list(self.paused.values()):
            if self.room.may_read(execution):
                del self.paused[execution.name]
                execution.told_full = False
                execution.idle_since = self.loop.now()
                paused, execution.paused = execution.paused, set()
                for channel in paused:
                    self.resume(execution, channel)

    def resume(self, execution: Execution, channel: int) -> None:
        """Reads a pipe again, if it is still open and there is no other reason not to."""
        if channel in execution.pipes and channel not in execution.paused:
            self.watch_pipe(execution, channel)
