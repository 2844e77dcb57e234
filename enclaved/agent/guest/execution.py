"""What the guest knows of an execution and of a context. The parts of the guest work on these; they do nothing."""

from __future__ import annotations

import collections
import time

from .fields import count, seconds, text
from .frames import FrameError
from .journal import Journal
from .limits import JOURNAL_BYTES, KEEP_LAST_MIN_BYTES, STDERR, STDOUT, TERMINAL
from .usage import Used

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional, Set, Tuple

    from .children import Child
    from .journal import Reader
    from .late import Late
    from .loop import Timer
    from .openings import Opening


class Context:
    """A persistent interpreter, and the executions that wait for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.late: Optional[Late] = None  # what it writes between its calls, once one has ended
        self.child: Optional[Child] = None
        self.current: Optional[Execution] = None
        self.queue: Deque[Execution] = collections.deque()
        self.died = False  # an earlier interpreter of this name is gone, and with it its variables
        self.opening: Optional[Opening] = None  # its interpreter is being started; calls wait for that
        self.closed = False  # it has given up its name
        self.since = time.monotonic()  # it was opened or got its interpreter

    def is_alive(self) -> bool:
        """Whether it has an interpreter that can take calls."""
        return self.child is not None and not self.child.silent and not self.child.deaf

    def settle(self, child: Child) -> None:
        """A child is its interpreter from now on."""
        if self.child is not child:
            self.child, child.context = child, self
            self.since = time.monotonic()


class Execution:
    """One run of one job, from its frame until its record expires."""

    def __init__(self, name: str, header: Dict[str, Any]) -> None:
        self.name = name
        self.context_name = text(header, "context")
        self.context: Optional[Context] = None  # of that name, as it was when the job was complete
        self.timeout_s = seconds(header, "timeout_s")
        self.output_limit = count(header, "output_limit_bytes")
        self.idle_timeout_s = seconds(header, "idle_timeout_s")
        self.terminal = _terminal_size(header.get("terminal"))
        self.wants_stdin = bool(header.get("stdin"))
        self.merge_stderr = bool(header.get("merge_stderr"))
        self.job_size = count(header, "job_bytes") or 0
        self.job = bytearray()
        self.starts = 0
        channels = (STDOUT, STDERR) if self.terminal is None else (TERMINAL,)
        self.journal = Journal(channels, _keep_last_bytes(count(header, "keep_last_bytes")))
        self.late_bytes = 0  # of its output that was written before it
        self.may_go = False  # it has ended, and nobody needs its output any more
        self.reserved_bytes = 0  # for what may be in its pipes
        self.readers: Dict[int, Reader] = {}
        self.state = "queued"  # then starting, running, draining, ended
        self.child: Optional[Child] = None
        self.pid = 0
        self.pipes: Dict[int, int] = {}  # read end by channel
        self.paused: Set[int] = set()
        self.large_pipes: Set[int] = set()
        self.stdin_fd: Optional[int] = None
        self.stdin_buffer = bytearray()
        self.stdin_offset = 0  # next byte expected from the daemon
        self.stdin_told = 0  # up to where the daemon knows it taken
        self.stdin_ended = False
        self.stdin_last = b""  # the last byte that was written
        self.ended_in_lines: Optional[bool] = None  # how its terminal was read when it was told of the end of the input
        self.idle_since = 0.0
        self.idle_timer: Optional[Timer] = None
        self.begun = True  # its program can be signalled
        self.signals: List[Tuple[int, bool, bool]] = []  # that wait for that, as `Signals` keeps them
        self.signalled: List[int] = []
        self.cause: Optional[str] = None
        self.reason = ""  # what a cause does not say
        self.fresh_context = False
        self.claim: Optional[Dict[str, Any]] = None
        self.status: Optional[int] = None
        self.usage: Optional[Dict[str, Any]] = None
        self.used = Used()  # as far as anybody has looked
        self.sampled_at = 0.0
        self.disks_full = 0
        self.kill_rounds = 0
        self.kill_deadline = 0.0  # of the loop, once killing has begun
        self.timer: Optional[Timer] = None
        self.told_full = False
        self.finished: Optional[Dict[str, Any]] = None
        now = time.monotonic()
        self.times = {"queued": now, "starting": now, "running": now, "draining": now, "ended": now}

    def enter(self, state: str) -> None:
        """Moves on, and remembers when. Phases that were skipped take no time."""
        order = ("queued", "starting", "running", "draining", "ended")
        now = time.monotonic()
        for later in order[order.index(state) :]:
            self.times[later] = now
        self.state = state


def _terminal_size(size: Any) -> Optional[Tuple[int, int]]:
    """Rows and columns out of a header; None where no terminal is wanted. Raises FrameError."""
    if size is None:
        return None
    sides = size if isinstance(size, list) else []
    if len(sides) != 2 or any(type(side) is not int or not 0 < side < 65536 for side in sides):
        raise FrameError("no size of a terminal: %r" % size)
    return size[0], size[1]


def _keep_last_bytes(number: Optional[int]) -> Optional[int]:
    """How much of the last output is kept; None where output is kept until it is acknowledged."""
    return None if number is None else max(KEEP_LAST_MIN_BYTES, min(JOURNAL_BYTES, number))
