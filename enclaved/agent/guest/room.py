"""The memory that the output of a sandbox's programs may take, and who gives way where it is short."""

from __future__ import annotations

import fcntl

from .limits import (
    FIRST_BYTES,
    JOURNAL_BYTES,
    LARGE_PIPE_BYTES,
    LARGE_PIPES_MAX,
    MAX_PAYLOAD_BYTES,
    PRESSED_BYTES,
    SANDBOX_JOURNAL_BYTES,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

    from .execution import Execution
    from .link import Link
    from .records import Records

_F_SETPIPE_SZ = 1031


class Room:
    """Counts the journals of all executions, and what the pipes of those that run may add to them at their end.

    Both together stay within `SANDBOX_JOURNAL_BYTES`, but for what each execution gets in any case: a first piece of
    `FIRST_BYTES`, and pipes of one page. Output that nobody has read is never given up: programs wait instead.
    """

    def __init__(self, link: Link, records: Records) -> None:
        self.link, self.records = link, records
        self.journal_bytes = 0
        self.pipe_bytes = 0
        self.yielding: Dict[str, Execution] = {}  # ended, and may lose their output; the first goes first

    def free_bytes(self) -> int:
        """What is not taken; less than nothing where first pieces are beyond the bound."""
        return SANDBOX_JOURNAL_BYTES - self.journal_bytes - self.pipe_bytes

    def may_read(self, execution: Execution) -> int:
        """How much a program may write now that waits where its journal is full; 0: it must wait.

        A journal may grow for as long as more is free than it has. So some that nobody reads never take all: there is
        always some room for the next one, and be it as little as its first piece.
        """
        size = execution.journal.size
        if size >= JOURNAL_BYTES:
            return 0
        free = self.make(size + MAX_PAYLOAD_BYTES)
        if size < free:
            return max(FIRST_BYTES, min(MAX_PAYLOAD_BYTES, free))
        return FIRST_BYTES if not size else 0

    def make(self, wanted_bytes: int) -> int:
        """Says what is free; the output of old records is given up for as much as is wanted.

        Not while there is no daemon: the next one may have clients that lack the end of what was delivered before.
        """
        if self.free_bytes() < wanted_bytes and self.link.daemon is not None:
            for execution in list(self.yielding.values()):
                if execution.readers:
                    continue
                before = execution.journal.size
                execution.journal.shrink(0)
                self.journal_bytes -= before
                del self.yielding[execution.name]
                if self.free_bytes() >= wanted_bytes:
                    break
        return self.free_bytes()

    def reserve(self, execution: Execution) -> None:
        """Keeps room for what will be in the pipes of a program at its end. Where little is left they are small."""
        if execution.journal.keep_last_bytes is not None:
            return  # it makes room of its own
        if self.make(PRESSED_BYTES) >= PRESSED_BYTES:
            execution.reserved_bytes = len(execution.pipes) * MAX_PAYLOAD_BYTES
            self.pipe_bytes += execution.reserved_bytes
        elif execution.terminal is None:
            for fd in execution.pipes.values():
                fcntl.fcntl(fd, _F_SETPIPE_SZ, FIRST_BYTES)

    def enlarge(self, execution: Execution, channel: int) -> None:
        """Gives a pipe through which much comes more room, as long as few have it."""
        if channel in execution.large_pipes or self.free_bytes() < LARGE_PIPES_MAX * LARGE_PIPE_BYTES:
            return
        if sum(len(other.large_pipes) for other in self.records.active.values()) >= LARGE_PIPES_MAX:
            return
        execution.large_pipes.add(channel)
        try:
            fcntl.fcntl(execution.pipes[channel], _F_SETPIPE_SZ, LARGE_PIPE_BYTES)
        except OSError:  # the limit for this user is reached; slower, that is all
            return
        if execution.journal.keep_last_bytes is None:
            execution.reserved_bytes += LARGE_PIPE_BYTES
            self.pipe_bytes += LARGE_PIPE_BYTES

    def unreserve(self, execution: Execution) -> None:
        """The pipes of a program are empty: what was in them is in its journal."""
        self.pipe_bytes -= execution.reserved_bytes
        execution.reserved_bytes = 0

    def on_ended(self, execution: Execution) -> None:
        """An execution has ended. One that kept its last output gives way where there is no room."""
        if execution.journal.keep_last_bytes is not None:
            self.yielding[execution.name] = execution

    def on_may_go(self, execution: Execution) -> None:
        """Nobody needs the output of an execution that has ended."""
        if execution.state == "ended":
            execution.may_go = True
            self.yielding[execution.name] = execution

    def release(self, execution: Execution) -> None:
        """Frees the room of an execution that is forgotten."""
        self.unreserve(execution)
        self.journal_bytes -= execution.journal.size
        self.yielding.pop(execution.name, None)
