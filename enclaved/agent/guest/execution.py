"""What the guest knows of an execution and of a context. The parts of the guest work on these; they do nothing."""

from __future__ import annotations

import collections
import time

from .journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Optional, Set

    from .children import Child
    from .journal import Reader
    from .loop import Timer


class Context:
    """A persistent interpreter, and the executions that wait for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.child: Optional[Child] = None
        self.current: Optional[Execution] = None
        self.queue: Deque[Execution] = collections.deque()
        self.died = False  # an earlier interpreter of this name is gone, and with it its variables


class Execution:
    """One run of one job, from its frame until its record expires."""

    def __init__(self, name: str, header: Dict[str, Any]) -> None:
        self.name = name
        self.context_name: Optional[str] = header.get("context")
        self.timeout_s = float(header["timeout_s"])
        self.output_limit: Optional[int] = header.get("output_limit_bytes")
        self.wants_stdin = bool(header.get("stdin"))
        self.merge_stderr = bool(header.get("merge_stderr"))
        self.job_size = int(header["job_bytes"])
        self.job = bytearray()
        self.starts = 0
        self.journal = Journal()
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
        self.stdin_ended = False
        self.cause: Optional[str] = None
        self.fresh_context = False
        self.claim: Optional[Dict[str, Any]] = None
        self.status: Optional[int] = None
        self.usage: Optional[Dict[str, Any]] = None
        self.kill_rounds = 0
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
