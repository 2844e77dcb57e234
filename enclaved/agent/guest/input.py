"""Standard input: from the daemon to the pipes of programs."""

from __future__ import annotations

import os

from .descriptors import let_all_open
from .frames import FrameError
from .limits import END_AGAIN_S, MAX_PAYLOAD_BYTES, STDIN_WINDOW_BYTES
from .loop import WRITABLE
from .terminal import end_characters, reads_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List

    from .execution import Execution
    from .link import Link
    from .loop import Loop


class Input:
    """Writes what the daemon sends as far as programs take it.

    ``on_input`` is set by whoever puts the guest together: input has come for an execution, or its end.
    """

    on_input: Callable[[Execution], None]

    def __init__(self, loop: Loop, link: Link) -> None:
        self.loop, self.link = loop, link

    def open(self, execution: Execution, theirs: List[int]) -> None:
        """Makes the input of a program; its own end is added to a list."""
        if execution.wants_stdin:
            read_end, write_end = os.pipe()
            theirs.append(read_end)
            execution.stdin_fd = write_end
            os.set_blocking(write_end, False)
            let_all_open(read_end, 0o444)  # for /dev/stdin
        else:
            theirs.append(os.open(os.devnull, os.O_RDONLY))

    def on_stdin(self, execution: Execution, offset: int, data: bytes) -> None:
        """Takes bytes for standard input; what came before is not taken twice."""
        if offset > execution.stdin_offset or len(execution.stdin_buffer) > STDIN_WINDOW_BYTES + MAX_PAYLOAD_BYTES:
            raise FrameError("input at offset %d, wanted %d" % (offset, execution.stdin_offset))
        fresh = data[execution.stdin_offset - offset :]
        execution.stdin_offset += len(fresh)
        execution.stdin_buffer += fresh
        self.on_input(execution)
        self.write(execution, len(fresh) == MAX_PAYLOAD_BYTES)

    def on_end(self, execution: Execution) -> None:
        """No more input comes; the program sees that when it has taken what is there."""
        execution.stdin_ended = True
        self.on_input(execution)
        self.write(execution)

    def begin(self, execution: Execution) -> None:
        """Writes what came before the program ran."""
        if execution.stdin_buffer or execution.stdin_ended:
            self.write(execution)

    def write(self, execution: Execution, in_bulk: bool = False) -> None:
        """Writes input as far as the program takes it, and tells the daemon.

        ``in_bulk``: there is likely more to come, so up to half a window may be taken before the daemon hears of it; it
        can send the other half meanwhile.
        """
        if execution.state == "queued" or execution.state == "starting":
            return
        fd = execution.stdin_fd
        if fd is None:
            execution.stdin_buffer.clear()
        else:
            try:
                self.write_to(fd, execution)
                self.loop.unwatch(fd)
                if execution.stdin_ended and execution.terminal is None:
                    self.close(execution)
            except BlockingIOError:
                self.loop.watch(fd, WRITABLE, lambda _: self.write(execution))
            except OSError:  # the program closed its input; the rest goes nowhere, as in a shell
                execution.stdin_buffer.clear()
                self.loop.unwatch(fd)
                if execution.terminal is None or execution.stdin_ended:  # a terminal may be opened again
                    self.close(execution)
        taken = execution.stdin_offset - len(execution.stdin_buffer)
        if in_bulk and taken < execution.stdin_told + STDIN_WINDOW_BYTES // 2:
            return
        execution.stdin_told = taken
        self.link.send({"type": "stdin_taken", "execution": execution.name, "offset": taken})

    def write_to(self, fd: int, execution: Execution) -> None:
        """Writes all that there is, and the end of the input where a terminal is told of it. Raises OSError."""
        buffer = execution.stdin_buffer
        while buffer:
            written = os.write(fd, buffer)
            execution.stdin_last = bytes(buffer[written - 1 : written])
            execution.idle_since = self.loop.now()
            del buffer[:written]
        if execution.stdin_ended and execution.terminal is not None and execution.ended_in_lines is None:
            in_lines = reads_lines(fd)
            os.write(fd, end_characters(fd, execution.stdin_last))
            execution.ended_in_lines = in_lines
            self.loop.after(END_AGAIN_S, lambda: self.end_again(execution))

    def end_again(self, execution: Execution) -> None:
        """Ends the input of a terminal once more where its program reads in another way than before.

        A program that takes line editing over, as interpreters do, loses an end that was written before. Nor is the end
        of one that gave it back seen by what it starts.
        """
        fd = execution.stdin_fd
        if fd is None:
            return
        try:
            in_lines = reads_lines(fd)
            if in_lines != execution.ended_in_lines:
                os.write(fd, end_characters(fd, b""))
                execution.ended_in_lines = in_lines
        except OSError:  # no process has it open now, or it takes nothing
            pass
        self.loop.after(END_AGAIN_S, lambda: self.end_again(execution))

    def close(self, execution: Execution) -> None:
        """Closes the input of a program; one that is closed already is fine."""
        if execution.stdin_fd is not None:
            self.loop.unwatch(execution.stdin_fd)
            os.close(execution.stdin_fd)
            execution.stdin_fd = None
