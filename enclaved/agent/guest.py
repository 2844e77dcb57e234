"""The guest: PID 1 of a sandbox, which starts processes for the daemon and keeps what they write.

One file, standard library only, Python 3.8 or newer: it meets the image's Python, not ours. docs/guest-protocol.md
describes the frames. Three programs live here:

* ``--container SOCKET SETTINGS`` (PID 1, root) or ``--child SOCKET SETTINGS`` (tests without a PID namespace): the
  guest proper, a single-threaded event loop. It runs no user code and parses only length-checked frames.
* ``--template FD``: a clean interpreter that forks *standby* children ahead of demand. It never sees a job.
* A standby child waits for one job: to be a command, a fresh interpreter, a context (an interpreter that lives on)
  or to do one thing to a file. Everything is prepared but the change of user, which comes when it has the job's
  bytes: until then user code can neither signal it nor change its limits. What it says is a claim of user code;
  exit status and resource use come from ``wait4`` in the guest.

The daemon imports this module for the frame codec and the limits, nothing else.
"""

from __future__ import annotations

import array
import collections
import fcntl
import heapq
import json
import os
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # type checkers take it for true; the typing module would cost memory in every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, Iterator, List, NoReturn, Optional, Set, Tuple

PROTOCOL_VERSION = 1

MAX_HEADER_BYTES = 16 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_JOB_BYTES = 8 * 1024 * 1024
MAX_CLAIM_BYTES = 16 * 1024
MAX_EXCEPTION_NAME_BYTES = 256
MAX_EXCEPTION_TEXT_BYTES = 4 * 1024

JOURNAL_BYTES = 4 * 1024 * 1024
CHUNK_OVERHEAD_BYTES = 200
MERGE_BYTES = 1024
MERGE_S = 0.05
SANDBOX_JOURNAL_BYTES = 16 * 1024 * 1024
STDIN_WINDOW_BYTES = 256 * 1024
RECORD_KEPT_S = 60.0
RECORDS_EXPIRE_EVERY_S = 5.0
RECORDS_KEPT = 256
EXECUTIONS_MAX = 1024
INTERRUPT_GRACE_S = 1.0
SPAWN_DEADLINE_S = 5.0
SPAWN_PATIENCE_S = 2.0
CODE_FD = "_code_fd"
CLAIMS_AT_ONCE = 16
KILL_DEADLINE_S = 5.0
EXPIRY_MARGIN_S = 60.0
LARGE_PIPE_BYTES = 1024 * 1024
STARTS_MAX = 3
STANDBY_CHILDREN = 1
RESERVED_FILES = 8
SOURCES_KEPT = 256
SOURCES_BYTES = 1024 * 1024
LARGE_PIPES_MAX = 4
STOP_ROUNDS = 8
SWEEP_ROUNDS = 1000
RETRY_S = 0.2

STDOUT = 1
STDERR = 2

USAGE = ("cpu_user_s", "cpu_system_s", "memory_peak_bytes", "io_read_bytes", "io_write_bytes")

# -- frames ------------------------------------------------------------------------------------------------------
#
# A frame is: length of header and payload together (4 bytes, big-endian), length of the header (2 bytes), header
# (a JSON object with "type"), payload (raw bytes). The same codec serves both sides.

_PREFIX = struct.Struct(">IH")


class FrameError(Exception):
    """The peer sent what is no frame. The connection cannot be used any more."""


def encode_frame(header: Dict[str, Any], payload: bytes = b"") -> bytes:
    """Makes one frame. Raises ValueError if it would be larger than the peer accepts."""
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError("frame too large: header %d bytes, payload %d bytes" % (len(text), len(payload)))
    return _PREFIX.pack(len(text) + len(payload), len(text)) + text + payload


class FrameDecoder:
    """Cuts a byte stream into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Tuple[Dict[str, Any], bytes]]:
        """Takes the next bytes and returns the frames that they complete. Raises FrameError."""
        self._buffer += data
        frames = []
        start = 0
        try:
            while len(self._buffer) - start >= _PREFIX.size:
                length, header_length = _PREFIX.unpack_from(self._buffer, start)
                if header_length > MAX_HEADER_BYTES or header_length > length:
                    raise FrameError("header of %d bytes in a frame of %d" % (header_length, length))
                if length - header_length > MAX_PAYLOAD_BYTES:
                    raise FrameError("payload of %d bytes" % (length - header_length))
                end = start + _PREFIX.size + length
                if len(self._buffer) < end:
                    break
                middle = start + _PREFIX.size + header_length
                frames.append((_header(bytes(self._buffer[end - length : middle])), bytes(self._buffer[middle:end])))
                start = end
        finally:
            del self._buffer[:start]
        return frames


def _header(text: bytes) -> Dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise FrameError("header has no type")
    return header


# -- journal -----------------------------------------------------------------------------------------------------


def cost_bytes(data: bytes) -> int:
    """What a chunk of output costs a reader's credit, so that many small ones cost what they take."""
    return len(data) + CHUNK_OVERHEAD_BYTES


class Chunk:
    """A piece of output as it was read from a pipe."""

    __slots__ = ("channel", "data", "offset", "time_s")

    def __init__(self, channel: int, offset: int, data: bytes, time_s: float) -> None:
        self.channel, self.offset, self.data, self.time_s = channel, offset, data, time_s


class Journal:
    """The retained output of one execution, addressed by byte offset in each channel.

    Chunks keep the order in which they were read. Acknowledged chunks are released from the front.
    """

    def __init__(self) -> None:
        self.chunks: Deque[Chunk] = collections.deque()
        self.first = 0  # sequence number of chunks[0]
        self.size = 0
        self.end = {STDOUT: 0, STDERR: 0}
        self.acknowledged = {STDOUT: 0, STDERR: 0}

    def append(self, channel: int, data: bytes, time_s: float) -> None:
        """Adds what was read from a channel. Small pieces that follow each other closely become one chunk."""
        last = self.chunks[-1] if self.chunks else None
        if (
            last is not None
            and last.channel == channel
            and len(last.data) + len(data) <= MERGE_BYTES
            and time_s - last.time_s < MERGE_S
        ):
            last.data += data
        else:
            self.chunks.append(Chunk(channel, self.end[channel], data, time_s))
            self.size += CHUNK_OVERHEAD_BYTES
        self.size += len(data)
        self.end[channel] += len(data)

    def acknowledge(self, channel: int, offset: int) -> None:
        """Notes that everything before an offset has arrived, and releases what nobody needs any more."""
        if channel in self.end and self.acknowledged[channel] < offset <= self.end[channel]:
            self.acknowledged[channel] = offset
        while self.chunks:
            chunk = self.chunks[0]
            if chunk.offset + len(chunk.data) > self.acknowledged[chunk.channel]:
                break
            self.chunks.popleft()
            self.first += 1
            self.size -= cost_bytes(chunk.data)

    def start(self) -> Dict[int, int]:
        """The first offset still kept, for each channel."""
        found = dict(self.end)
        for chunk in reversed(self.chunks):
            found[chunk.channel] = chunk.offset
        return found


class Reader:
    """One follower of a journal: a position, and credit for as much as the daemon will take (see `cost_bytes`)."""

    def __init__(self, name: int, journal: Journal, offsets: Dict[int, int], credit: int) -> None:
        self.name, self.credit = name, credit
        self._journal = journal
        self._next = journal.first
        self._offsets = offsets  # skip what lies below

    def chunks(self) -> Iterator[Chunk]:
        """Yields what may be sent now, and moves on. A chunk may exceed the credit that is left by its own size.

        Where output was released before this reader came to it, the next chunk's offset shows the gap.
        """
        journal = self._journal
        self._next = max(self._next - 1, journal.first)  # the last chunk may have grown since
        while self.credit > 0 and self._next < journal.first + len(journal.chunks):
            chunk = journal.chunks[self._next - journal.first]
            self._next += 1
            wanted = self._offsets[chunk.channel]
            if chunk.offset + len(chunk.data) <= wanted:
                continue
            if chunk.offset < wanted:
                chunk = Chunk(chunk.channel, wanted, chunk.data[wanted - chunk.offset :], chunk.time_s)
            self._offsets[chunk.channel] = chunk.offset + len(chunk.data)
            self.credit -= cost_bytes(chunk.data)
            yield chunk

    @property
    def at_end(self) -> bool:
        """Whether it has seen all that there is. Exact once nothing is appended any more."""
        journal = self._journal
        if not journal.chunks:
            return True
        last = journal.chunks[-1]
        seen = self._offsets[last.channel] >= last.offset + len(last.data)
        return seen and self._next >= journal.first + len(journal.chunks)


# -- the guest proper --------------------------------------------------------------------------------------------


class Child:
    """A process made by the template, seen from the guest: standby first, then at one job or a context."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked_at = time.monotonic()
        self.pid = 0  # as the kernel tells it; 0 until its first message
        self.execution: Optional[Execution] = None
        self.context: Optional[Context] = None
        self.outgoing: Deque[Tuple[bytes, List[int]]] = collections.deque()
        self.incoming = bytearray()
        self.silent = False  # it closed its end
        self.unread = False  # it died without having read all that was sent to it
        self.calls = 0  # that ended in it, where it is a context
        self.patience: Optional[Timer] = None


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


class Timer:
    """Something to do at a time. Without a call it has been done or cancelled."""

    __slots__ = ("call", "deadline", "number")

    def __init__(self, deadline: float, number: int, call: Callable[[], None]) -> None:
        self.deadline, self.number = deadline, number
        self.call: Optional[Callable[[], None]] = call

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)


class Guest:
    """The event loop of PID 1."""

    def __init__(self, mode: str, socket_path: str, settings: Dict[str, Any]) -> None:
        self.owns_namespace = mode == "--container"
        if self.owns_namespace and os.getpid() != 1:
            raise SystemExit("guest: --container needs to be PID 1; this is PID %d" % os.getpid())
        self.socket_path = socket_path
        self.settings = settings
        self.privileged = os.getuid() == 0
        self.executions: Dict[str, Execution] = {}
        self.contexts: Dict[str, Context] = {}
        self.children: Dict[int, Child] = {}  # by pid, once known
        self.standby: Deque[Child] = collections.deque()
        self.spawning: List[Child] = []
        self.waiting: Deque[Tuple[float, Execution]] = collections.deque()  # for a child
        self.spawn_failure = ""
        self.early_exits: Dict[int, Tuple[float, int, Any]] = {}
        self.template_pid = 0
        self.template: Optional[socket.socket] = None
        self.timers: List[Timer] = []
        self.timer_count = 0
        self.timers_cancelled = 0
        self.daemon: Optional[socket.socket] = None
        self.decoder = FrameDecoder()
        self.outgoing = bytearray()
        self.absent_since = time.monotonic()
        self.journal_bytes = 0
        self.dirty: Dict[str, Execution] = {}  # have output that readers have not seen
        self.active: Dict[str, Execution] = {}  # may have processes
        self.paused: Dict[str, Execution] = {}  # wait for room in their journal
        self.records: Deque[Execution] = collections.deque()  # ended, oldest first
        self.expiry: Optional[Timer] = None

        import select

        self.poll = select.epoll()
        self.handlers: Dict[int, Callable[[int], None]] = {}
        self.readable, self.writable = select.EPOLLIN, select.EPOLLOUT

    # -- the loop

    def serve(self) -> NoReturn:
        """Runs until the sandbox ends. Never returns."""
        os.set_inheritable(globals()[CODE_FD], False)
        wake, wakeup = socket.socketpair()
        wake.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
        self.watch(wake.fileno(), self.readable, lambda _: self.on_wakeup(wake))
        if not self.owns_namespace:
            _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        _prctl(4, 0)  # PR_SET_DUMPABLE: nobody may look into PID 1
        self.start_template()
        self.after(float(self.settings["expires_in_s"]) + EXPIRY_MARGIN_S, self.expire)
        self.connect()
        while True:
            for fd, events in self.poll.poll(self.next_timer_s()):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            self.run_timers()
            for execution in list(self.dirty.values()):
                self.pump(execution)
            self.dirty.clear()
            self.flush()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Calls the handler when the descriptor is ready."""
        if fd in self.handlers:
            self.poll.modify(fd, events)
        else:
            self.poll.register(fd, events)
        self.handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forgets a descriptor. One that is not watched is fine."""
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Calls once, later."""
        self.timer_count += 1
        timer = Timer(time.monotonic() + delay_s, self.timer_count, call)
        heapq.heappush(self.timers, timer)
        return timer

    def cancel(self, timer: Optional[Timer]) -> None:
        """Forgets a timer. Many forgotten ones are cleared away together."""
        if timer is None or timer.call is None:
            return
        timer.call = None
        self.timers_cancelled += 1
        if self.timers_cancelled > 256 and self.timers_cancelled * 2 > len(self.timers):
            self.timers = [timer for timer in self.timers if timer.call is not None]
            heapq.heapify(self.timers)
            self.timers_cancelled = 0

    def next_timer_s(self) -> Optional[float]:
        if not self.timers:
            return None
        return max(0.0, self.timers[0].deadline - time.monotonic())

    def run_timers(self) -> None:
        now = time.monotonic()
        while self.timers and self.timers[0].deadline <= now:
            timer = heapq.heappop(self.timers)
            call, timer.call = timer.call, None
            if call is None:
                self.timers_cancelled -= 1
            else:
                call()

    def expire(self) -> None:
        """The daemon should have removed this sandbox by now."""
        os._exit(0)

    # -- the daemon

    def connect(self) -> None:
        """Connects to the daemon; tries again until it is there or has been absent for too long."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(1.0)
            sock.connect(self.socket_path)
        except OSError:
            sock.close()
            absence_s = time.monotonic() - self.absent_since
            limit_s = float(self.settings["daemon_absence_s"])
            if limit_s and absence_s > limit_s:
                os._exit(0)
            self.after(min(1.0, 0.05 + absence_s / 10), self.connect)
            return
        sock.setblocking(False)
        self.daemon = sock
        self.decoder = FrameDecoder()
        self.outgoing = bytearray()
        self.watch(sock.fileno(), self.readable, self.on_daemon)
        self.send(
            {
                "type": "hello",
                "version": PROTOCOL_VERSION,
                "sandbox": self.settings["sandbox_id"],
                "python": "%d.%d.%d" % sys.version_info[:3],
            }
        )
        for execution in list(self.executions.values()):
            self.send({"type": "holds", "execution": execution.name, "state": execution.state})
            if execution.finished is not None:
                self.send(execution.finished)
            elif execution.told_full:
                self.tell_full(execution)
        self.send({"type": "ready"})

    def disconnect(self) -> None:
        """Drops a connection that is gone or spoke nonsense. Executions run on."""
        if self.daemon is None:
            return
        self.unwatch(self.daemon.fileno())
        self.daemon.close()
        self.daemon = None
        self.absent_since = time.monotonic()
        for execution in list(self.executions.values()):
            execution.readers.clear()
            if execution.state == "queued" and len(execution.job) < execution.job_size:
                del self.executions[execution.name]  # the rest is lost; the daemon sends it again
        self.after(0.02, self.connect)

    def on_daemon(self, events: int) -> None:
        if events & self.writable:
            self.flush()
        if self.daemon is None or not events & ~self.writable:
            return
        try:
            data = self.daemon.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return
        try:
            for header, payload in self.decoder.feed(data):
                self.on_frame(header, payload)
        except (FrameError, KeyError, TypeError, ValueError) as error:
            sys.stderr.write("guest: the daemon sent a frame that cannot be understood: %r\n" % error)
            self.disconnect()

    def send(self, header: Dict[str, Any], payload: bytes = b"") -> None:
        """Queues a frame for the daemon. What is queued is bounded by the credit of the readers."""
        if self.daemon is not None:
            self.outgoing += encode_frame(header, payload)

    def flush(self) -> None:
        """Sends what is queued, as far as the socket takes it."""
        if self.daemon is None or not self.outgoing:
            return
        try:
            sent = self.daemon.send(self.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.disconnect()
            return
        del self.outgoing[:sent]
        events = self.readable | self.writable if self.outgoing else self.readable
        self.watch(self.daemon.fileno(), events, self.on_daemon)

    def on_frame(self, header: Dict[str, Any], payload: bytes) -> None:
        """Does what one frame of the daemon says."""
        kind = header["type"]
        if kind == "run":
            self.on_run(header, payload)
        elif kind == "ping":
            self.send({"type": "pong", "number": header["number"]})
        elif kind == "park":
            self.on_park(header)
        else:
            execution = self.executions.get(header["execution"])
            if execution is None:
                if kind == "subscribe":
                    self.send({"type": "unknown", "execution": header["execution"], "reader": header["reader"]})
                return
            if kind == "job":
                self.on_job(execution, payload)
            elif kind == "subscribe":
                self.on_subscribe(execution, header)
            elif kind == "credit":
                reader = execution.readers.get(header["reader"])
                if reader is not None:
                    reader.credit += int(header["bytes"])
                    self.dirty[execution.name] = execution
            elif kind == "unsubscribe":
                execution.readers.pop(header["reader"], None)
            elif kind == "acknowledge":
                self.on_acknowledge(execution, header)
            elif kind == "stdin":
                self.on_stdin(execution, int(header["offset"]), payload)
            elif kind == "end_of_input":
                execution.stdin_ended = True
                self.write_stdin(execution)
            elif kind == "cancel":
                self.stop_execution(execution, "cancel")
            else:
                raise FrameError("unknown type %r" % kind)

    # -- starting executions

    def on_run(self, header: Dict[str, Any], payload: bytes) -> None:
        name = header["execution"]
        known = self.executions.get(name)
        if known is not None:  # the same id is the same execution
            if header.get("subscribe") is not None:
                self.on_subscribe(known, header["subscribe"])
            if known.finished is not None:
                self.send(known.finished)
            return
        if len(self.executions) >= EXECUTIONS_MAX:
            self.send({"type": "refused", "execution": name, "code": "full", "message": "too many executions"})
            return
        execution = Execution(name, header)
        if execution.job_size > MAX_JOB_BYTES:
            raise FrameError("job of %d bytes" % execution.job_size)
        self.executions[name] = execution
        subscription = header.get("subscribe")
        if subscription is not None:  # from the first byte on: there is nothing to say about it
            reader = Reader(
                int(subscription["reader"]),
                execution.journal,
                {STDOUT: 0, STDERR: 0},
                int(subscription["credit_bytes"]),
            )
            execution.readers[reader.name] = reader
        self.on_job(execution, payload)

    def on_job(self, execution: Execution, payload: bytes) -> None:
        """Takes the next piece of a job; the last one starts it."""
        if execution.state != "queued" or len(execution.job) == execution.job_size:
            return  # it came before
        if len(execution.job) + len(payload) > execution.job_size:
            raise FrameError("more job than announced")
        execution.job += payload
        if len(execution.job) < execution.job_size:
            return
        if execution.context_name is None:
            self.take_child(execution)
            return
        context = self.contexts.setdefault(execution.context_name, Context(execution.context_name))
        context.queue.append(execution)
        self.next_in(context)

    def next_in(self, context: Context) -> None:
        """Starts the next execution of a context that is free."""
        if context.current is not None or not context.queue:
            return
        execution = context.queue.popleft()
        context.current = execution
        if context.child is not None and context.child.silent:  # it closed its socket, so it can take no call
            self.kill(context.child.pid)
            context.child = None
            context.died = True
        if context.child is None:
            execution.fresh_context = context.died
            self.take_child(execution)
        else:
            self.start(execution, context.child)

    def take_child(self, execution: Execution) -> None:
        """Starts an execution in a standby child, now or as soon as there is one."""
        self.active[execution.name] = execution
        execution.enter("starting")
        if self.standby:
            self.start(execution, self.standby.popleft())
        else:
            deadline = time.monotonic() + SPAWN_DEADLINE_S
            self.waiting.append((deadline, execution))
            execution.timer = self.after(SPAWN_DEADLINE_S, self.refuse_late)
        self.refill()

    def refuse_late(self) -> None:
        """Gives up on executions for which no process could be made in time."""
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            why = self.spawn_failure or "its process or memory limit is exhausted"
            text = "no process could be started in the sandbox: " + why
            self.refuse(self.waiting.popleft()[1], "no_process", text)

    def refuse(self, execution: Execution, code: str, message: str) -> None:
        """Says that an execution never ran."""
        self.send({"type": "refused", "execution": execution.name, "code": code, "message": message})
        context = self.contexts.get(execution.context_name or "")
        if context is not None and context.current is execution:
            context.current = None
        self.executions.pop(execution.name, None)
        self.active.pop(execution.name, None)
        if context is not None:
            self.next_in(context)
        self.sweep_strays()

    def start(self, execution: Execution, child: Child) -> None:
        """Hands a job with fresh pipes to a child."""
        if execution.state == "queued":
            self.active[execution.name] = execution
            execution.enter("starting")
        self.cancel(execution.timer)
        theirs: List[int] = []
        try:
            self.open_pipes(execution, theirs)
        except OSError as error:  # out of descriptors: too much at once in this sandbox
            for fd in theirs:
                os.close(fd)
            for channel in list(execution.pipes):
                self.close_pipe(execution, channel)
            self.close_stdin(execution)
            if child.context is None:
                self.standby.append(child)
            self.refuse(execution, "no_process", "no pipes for another program in this sandbox: %s" % error.strerror)
            return
        for channel in execution.pipes:
            self.watch_pipe(execution, channel)
        execution.child, execution.pid = child, child.pid
        child.execution = execution
        if execution.context_name is not None:
            context = self.contexts[execution.context_name]
            context.child, child.context = child, context
            context.died = False
        self._signal(child.pid, signal.SIGCONT)  # a stopped child would look like a program that hangs
        header = struct.pack(">I?", len(execution.job), execution.context_name is not None)
        child.outgoing.append((header + bytes(execution.job), theirs))
        execution.starts += 1
        if execution.job_size > MAX_PAYLOAD_BYTES:
            execution.job = bytearray()  # too large to be kept for another start
        execution.enter("running")
        if execution.timeout_s > 0:
            execution.timer = self.after(execution.timeout_s, lambda: self.stop_execution(execution, "timeout"))
        self.write_child(child)
        if execution.stdin_buffer or execution.stdin_ended:
            self.write_stdin(execution)

    @staticmethod
    def open_pipes(execution: Execution, theirs: List[int]) -> None:
        """Makes the pipes of a program; its own ends are added to a list in the order of their numbers."""
        if execution.wants_stdin:
            read_end, write_end = os.pipe()
            theirs.append(read_end)
            execution.stdin_fd = write_end
            os.set_blocking(write_end, False)
            os.fchmod(read_end, 0o444)  # for /dev/stdin, which opens it anew as another user
        else:
            theirs.append(os.open(os.devnull, os.O_RDONLY))
        for channel in (STDOUT, STDERR):
            if channel == STDERR and execution.merge_stderr:
                theirs.append(os.dup(theirs[STDOUT]))
                continue
            read_end, write_end = os.pipe()
            theirs.append(write_end)
            execution.pipes[channel] = read_end
            os.set_blocking(read_end, False)
            os.fchmod(write_end, 0o222)  # for /dev/stdout and /dev/stderr

    def write_child(self, child: Child) -> None:
        """Sends jobs to a child as far as its socket takes them; descriptors travel with the first byte."""
        while child.outgoing:
            data, fds = child.outgoing.popleft()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = child.sock.sendmsg([data], rights)
            except BlockingIOError:
                child.outgoing.appendleft((data, fds))
                break
            except OSError:  # it is dying; wait4 will tell how
                child.outgoing.appendleft((data, fds))
                self.on_silence(child)
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                child.outgoing.appendleft((data[sent:], []))
        events = self.readable | self.writable if child.outgoing else self.readable
        self.watch(child.sock.fileno(), events, lambda ready: self.on_child(child, ready))

    # -- children

    def start_template(self) -> None:
        """Starts the clean interpreter from which all children come."""
        if self.template is not None:
            self.template.close()
            self.template = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self.after(RETRY_S, self.start_template)
            return
        try:
            pid = os.fork()
        except OSError:  # the process limit is used up; strays die with their executions
            ours.close()
            theirs.close()
            self.after(RETRY_S, self.start_template)
            return
        if pid == 0:
            try:
                os.set_inheritable(theirs.fileno(), True)
                os.chdir("/")
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                code_fd = globals()[CODE_FD]
                os.set_inheritable(code_fd, True)
                arguments = [sys.executable] + lean_arguments(code_fd)
                arguments += ["--template", str(theirs.fileno()), json.dumps(self.settings)]
                path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                os.execve(
                    sys.executable,
                    arguments,
                    {"PATH": path, "LANG": "C.UTF-8", "HOME": self.settings["working_dir"]},
                )
            finally:
                os._exit(127)
        theirs.close()
        ours.setblocking(False)
        self.template, self.template_pid = ours, pid
        self.refill()

    def refill(self) -> None:
        """Asks the template for as many children as are wanted and not yet on their way."""
        wanted = STANDBY_CHILDREN + len(self.waiting) - len(self.standby) - len(self.spawning)
        for _ in range(min(wanted, 16)):
            if self.template is None:
                return  # it is being started, which ends here again
            try:
                ours, theirs = socket.socketpair()
            except OSError:
                self.after(RETRY_S, self.refill)
                return
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setblocking(False)
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
                self.template.sendmsg([b"fork"], rights)
            except OSError:  # the template is busy, or died and its exit starts another one
                ours.close()
                self.after(RETRY_S, self.refill)
                return
            finally:
                theirs.close()
            child = Child(ours)
            child.patience = self.after(SPAWN_PATIENCE_S, lambda child=child: self.give_up(child))  # type: ignore[misc]
            self.spawning.append(child)
            self.watch(ours.fileno(), self.readable, lambda ready, child=child: self.on_child(child, ready))  # type: ignore[misc]

    def give_up(self, child: Child) -> None:
        """A child that does not become ready was stopped by user code, or starves; another one takes its place."""
        if child in self.spawning:
            self.kill(child.pid)
            self.on_silence(child)

    def on_child(self, child: Child, events: int) -> None:
        if events & self.writable:
            self.write_child(child)
        if events & ~self.writable:
            self.read_child(child)

    def read_child(self, child: Child) -> None:
        """Takes in what a child says. Everything but the kernel's credentials is a claim.

        Only so much at a time: a context that talks without end must not keep the guest from anything else.
        """
        for _ in range(CLAIMS_AT_ONCE):
            if child.silent:
                break
            try:
                data, ancillary, _, _ = child.sock.recvmsg(MAX_CLAIM_BYTES, socket.CMSG_SPACE(12))
            except BlockingIOError:
                break
            except OSError:  # the kernel's word for bytes that the other side will never read
                data, ancillary = b"", []
                child.unread = True
            if not child.pid:
                for level, kind, value in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                        child.pid = struct.unpack("iii", value[:12])[0]
                        self.children[child.pid] = child
            if not data:
                self.on_silence(child)
                break
            child.incoming += data
            while len(child.incoming) >= 4 and not child.silent:
                (size,) = struct.unpack_from(">I", child.incoming)
                if size > MAX_CLAIM_BYTES:
                    self.on_silence(child)
                    self.kill(child.pid)
                    break
                if len(child.incoming) < 4 + size:
                    break
                text = bytes(child.incoming[4 : 4 + size])
                del child.incoming[: 4 + size]
                self.on_claim(child, text)
        early = self.early_exits.pop(child.pid, None)
        if early is not None and early[0] >= child.asked_at:  # older ones were somebody else's of the same number
            self.on_exit(child, *early[1:])

    def on_claim(self, child: Child, text: bytes) -> None:
        try:
            claim = json.loads(text)
        except (ValueError, RecursionError):
            claim = None
        if not isinstance(claim, dict):
            self.on_silence(child)
            self.kill(child.pid)
        elif "ready" in claim:
            if child in self.spawning:
                self.spawning.remove(child)
                self.cancel(child.patience)
                if self.waiting:
                    self.start(self.waiting.popleft()[1], child)
                else:
                    self.standby.append(child)
        elif "failed" in claim and child in self.spawning:
            self.spawn_failure = str(claim["failed"])[:1000]
            sys.stderr.write("guest: a child could not be prepared: %s\n" % self.spawn_failure)
        elif "done" in claim and (
            child.execution is None or (child.context is not None and claim.get("call") != child.calls + 1)
        ):  # nobody asked for this end: user code plays with the socket
            self.on_silence(child)
            self.kill(child.pid)
        elif "done" in claim and child.execution is not None and child.execution.state == "running":
            child.execution.claim = _checked_claim(claim)
            if child.context is not None:
                child.calls += 1
                self.end_program(child.execution)

    def on_silence(self, child: Child) -> None:
        """A child closed its end: it died, or became another program, or lies. wait4 knows."""
        child.silent = True
        self.unwatch(child.sock.fileno())
        child.unread = child.unread or bool(child.outgoing)
        for _, fds in child.outgoing:
            for fd in fds:
                os.close(fd)
        child.outgoing.clear()
        child.sock.close()
        if child in self.spawning:
            self.spawning.remove(child)
            self.after(0.02, self.refill)
        elif child in self.standby:
            self.standby.remove(child)
            self.refill()

    def on_wakeup(self, wake: socket.socket) -> None:
        try:
            while wake.recv(4096):
                pass
        except BlockingIOError:
            pass
        self.reap()

    def reap(self) -> None:
        """Collects every process that has ended, ours and orphans alike."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.template_pid:
                self.after(0.05, self.start_template)
                continue
            child = self.children.get(pid)
            if child is not None:
                self.on_exit(child, status, usage)
            elif self.spawning:
                if len(self.early_exits) > 1024:
                    self.early_exits.clear()
                self.early_exits[pid] = (time.monotonic(), status, usage)
            else:
                self.early_exits.clear()

    def on_exit(self, child: Child, status: int, usage: Any) -> None:
        if not child.silent:
            self.read_child(child)  # the last claim came before the exit
        if not child.silent:
            self.on_silence(child)
        self.children.pop(child.pid, None)
        context, execution = child.context, child.execution
        never_ran = child.unread and execution is not None and execution.state == "running"
        if context is not None and context.child is child:
            context.child = None
            context.died = child.calls > 0 or not never_ran
        if execution is None:
            return
        if never_ran and execution.cause is None and execution.starts < STARTS_MAX:
            self.start_again(execution)
            return
        if execution.status is None:
            execution.status = status
            execution.usage = {
                "cpu_user_s": usage.ru_utime,
                "cpu_system_s": usage.ru_stime,
                "memory_peak_bytes": usage.ru_maxrss * 1024,
                "io_read_bytes": usage.ru_inblock * 512,
                "io_write_bytes": usage.ru_oublock * 512,
            }
        if execution.state == "running":
            self.end_program(execution)

    def start_again(self, execution: Execution) -> None:
        """Gives a job to another child, since the one before was killed before it had read it."""
        for channel in list(execution.pipes):
            self.close_pipe(execution, channel)
        self.close_stdin(execution)
        self.cancel(execution.timer)
        execution.child = None
        if execution.context_name is not None:
            execution.fresh_context = execution.fresh_context or self.contexts[execution.context_name].died
        if execution.job and execution.stdin_offset == len(execution.stdin_buffer):
            self.take_child(execution)
        else:
            self.active.pop(execution.name)
            self.refuse(execution, "no_process", "another program of the sandbox killed the process before it began")

    # -- stopping

    def stop_execution(self, execution: Execution, cause: str) -> None:
        """Ends an execution before its time: a context is asked first, everything else is killed at once."""
        if execution.state == "queued":
            execution.cause = cause
            context = self.contexts.get(execution.context_name or "")
            if context is not None and execution in context.queue:
                context.queue.remove(execution)
            self.complete(execution)
        elif execution.state == "starting":
            execution.cause = cause
            self.waiting = collections.deque(item for item in self.waiting if item[1] is not execution)
            self.complete(execution)
            self.sweep_strays()
        elif execution.state == "running" and execution.cause is None:
            execution.cause = cause
            if execution.context_name is not None and cause in ("timeout", "cancel"):
                self._signal(execution.pid, signal.SIGINT)
                self.after(INTERRUPT_GRACE_S, lambda: self.kill_running(execution))
            else:
                self.kill_running(execution)

    def kill_running(self, execution: Execution) -> None:
        """Kills the program itself; its tree follows when wait4 has told of its end."""
        if execution.state == "running":
            self.kill(execution.pid)

    def end_program(self, execution: Execution) -> None:
        """The program has ended: what it left behind dies, then its output is complete."""
        execution.enter("draining")
        self.clear_tree(execution)

    def clear_tree(self, execution: Execution) -> None:
        """Kills what is left of an execution, round after round, until nothing is."""
        if execution.state != "draining":
            return
        self.reap()
        left = self.left_behind(execution)
        if not left:
            self.complete(execution)
            return
        if time.monotonic() - execution.times["draining"] > KILL_DEADLINE_S:
            sys.stderr.write("guest: processes cannot be killed: %s\n" % sorted(left)[:20])
            os._exit(70)
        self.kill_all(left, lambda: self.left_behind(execution))
        execution.kill_rounds += 1
        self.reap()
        self.after(0.0 if execution.kill_rounds < 5 else 0.002, lambda: self.clear_tree(execution))

    def kill_all(self, victims: Set[int], again: Callable[[], Set[int]]) -> None:
        """Kills a set of processes. Many of them may be a bomb: they are stopped first, and looked at again."""
        if len(victims) > 4:
            for _ in range(STOP_ROUNDS):
                for pid in victims:
                    self._signal(pid, signal.SIGSTOP)
                known, victims = victims, victims | again()
                if victims == known:
                    break
        for pid in victims:
            self.kill(pid)

    def sweep_strays(self, rounds: int = SWEEP_ROUNDS) -> None:
        """Kills what no execution can answer for, now that none runs, until nothing is left of it."""
        if self.active or not self.privileged:
            return
        self.reap()
        strays = self.strays()
        if strays and rounds:
            self.kill_all(strays, self.strays)
            self.after(0.002, lambda: self.sweep_strays(rounds - 1))

    def strays(self) -> Set[int]:
        """Processes of the user that are not ours."""
        unknown = self.listed() - self.protected()
        return {pid for pid in unknown if _uid(pid) == self.settings["uid"] and _stat(pid) is not None}

    def protected(self) -> Set[int]:
        """Processes that a sweep leaves alone: they are known, alive or not yet reaped."""
        return {1, os.getpid(), self.template_pid} | set(self.children)

    def left_behind(self, execution: Execution) -> Set[int]:
        """Processes of an execution that has ended: its own tree, and all strays if nothing else runs.

        A process is never judged by what it can change about itself: only by its ancestors, its session and its uid.
        """
        pids = self.listed()
        if not pids - self.protected():
            return set()
        for child in list(self.spawning):
            self.read_child(child)  # whoever was listed above and is ours has said so by now
        unknown = pids - self.protected()
        alone = len(self.active) == 1
        table = {pid: _stat(pid) for pid in pids}
        found = set()
        for pid in unknown:
            if table.get(pid) is None:
                continue
            if alone:
                if not self.privileged or _uid(pid) == self.settings["uid"]:
                    found.add(pid)
            elif self.belongs(pid, table, execution.pid):
                found.add(pid)
        return found

    def listed(self) -> Set[int]:
        """The processes there are: all of our namespace, or only our descendants where it is not ours."""
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        if self.owns_namespace:
            return pids
        table = {pid: _stat(pid) for pid in pids}
        return {pid for pid in pids if self.belongs(pid, table, os.getpid())}

    @staticmethod
    def belongs(pid: int, table: Dict[int, Optional[Tuple[int, int]]], leader: int) -> bool:
        """Whether a process is in the session of a leader or descends from it."""
        for _ in range(len(table) + 1):
            entry = table.get(pid)
            if entry is None:
                return False
            if leader in entry:
                return True
            pid = entry[0]
        return False

    def kill(self, pid: int) -> None:
        """Kills one process of this sandbox."""
        self._signal(pid, signal.SIGKILL)

    def _signal(self, pid: int, number: int) -> None:
        if pid > 1 and pid != os.getpid():
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    def on_park(self, header: Dict[str, Any]) -> None:
        """Kills everything that runs here, contexts included. Files stay."""
        running = self.park_victims()
        for context in self.contexts.values():
            for execution in list(context.queue):
                self.stop_execution(execution, "park")
        for execution in list(self.active.values()):
            self.stop_execution(execution, "park")
        self.contexts.clear()
        self.park_round(header["number"], time.monotonic() + KILL_DEADLINE_S, running)

    def park_round(self, number: int, deadline: float, killed: Set[int]) -> None:
        self.reap()
        for child in list(self.spawning):
            self.read_child(child)
        victims = self.park_victims()
        if not victims and not self.active:
            self.send({"type": "parked", "number": number, "killed": len(killed)})
        elif time.monotonic() > deadline:
            os._exit(70)
        else:
            self.kill_all(victims, self.park_victims)
            self.after(0.002, lambda: self.park_round(number, deadline, killed | victims))

    def park_victims(self) -> Set[int]:
        """Everything of the user's but the standby children."""
        spared = {1, os.getpid(), self.template_pid} | {child.pid for child in self.standby}
        spared |= {child.pid for child in self.spawning}
        victims = self.listed() - spared
        victims = {pid for pid in victims if not self.privileged or _uid(pid) == self.settings["uid"]}
        return {pid for pid in victims if _stat(pid) is not None}

    # -- output

    def watch_pipe(self, execution: Execution, channel: int) -> None:
        fd = execution.pipes[channel]
        self.watch(fd, self.readable, lambda _: self.on_output(execution, channel))

    def on_output(self, execution: Execution, channel: int) -> None:
        """Reads a pipe, unless the journal is full: then the program waits."""
        journal = execution.journal
        if journal.size >= JOURNAL_BYTES or (journal.size and not self.room()):
            execution.paused.add(channel)
            self.paused[execution.name] = execution
            self.unwatch(execution.pipes[channel])
            if not execution.told_full:
                self.tell_full(execution)
            return
        if not self.read_pipe(execution, channel):
            self.close_pipe(execution, channel)

    def tell_full(self, execution: Execution) -> None:
        """Says that a program waits for room, and where its output stops until then."""
        execution.told_full = True
        ends = {str(channel): end for channel, end in execution.journal.end.items()}
        self.send({"type": "full", "execution": execution.name, "offsets": ends})

    def room(self) -> bool:
        """Whether the journals of this sandbox may grow; old records are given up for it."""
        if self.journal_bytes < SANDBOX_JOURNAL_BYTES:
            return True
        for execution in list(self.records):
            if not execution.readers and execution.journal.size:
                self.forget(execution)
                if self.journal_bytes < SANDBOX_JOURNAL_BYTES:
                    return True
        return False

    def read_pipe(self, execution: Execution, channel: int) -> int:
        """Moves one piece from a pipe to the journal; 0 at its end, -1 if there is nothing now."""
        fd = execution.pipes[channel]
        try:
            data = os.read(fd, MAX_PAYLOAD_BYTES)
        except BlockingIOError:
            return -1
        if not data:
            return 0
        if (
            len(data) == MAX_PAYLOAD_BYTES
            and channel not in execution.large_pipes
            and sum(len(other.large_pipes) for other in self.active.values()) < LARGE_PIPES_MAX
        ):
            execution.large_pipes.add(channel)
            try:
                fcntl.fcntl(fd, 1031, LARGE_PIPE_BYTES)  # F_SETPIPE_SZ
            except OSError:  # the limit for this user is reached; slower, that is all
                pass
        journal = execution.journal
        kept = data
        if execution.output_limit is not None:
            kept = data[: max(0, execution.output_limit - sum(journal.end.values()))]
            if len(kept) < len(data):
                self.on_output_limit(execution)
        if kept:
            before = journal.size
            journal.append(channel, kept, time.monotonic() - execution.times["running"])
            self.journal_bytes += journal.size - before
            self.dirty[execution.name] = execution
        return len(data)

    def on_output_limit(self, execution: Execution) -> None:
        """Kills a program that wrote more than it may. One that was quicker to end gets the same verdict."""
        if execution.state == "running":
            self.stop_execution(execution, "output_limit")
        elif execution.cause is None:
            execution.cause = "output_limit"

    def close_pipe(self, execution: Execution, channel: int) -> None:
        fd = execution.pipes.pop(channel, None)
        if fd is not None:
            self.unwatch(fd)
            os.close(fd)

    def on_subscribe(self, execution: Execution, header: Dict[str, Any]) -> None:
        journal = execution.journal
        first = journal.start()
        offsets = dict(first)
        for name, offset in header.get("offsets", {}).items():
            channel, offset = int(name), int(offset)
            if channel not in first or not first[channel] <= offset <= journal.end[channel]:
                kept = first.get(channel, 0)
                answer = {"type": "released", "channel": channel, "offset": offset, "first_offset": kept}
                self.send(dict(answer, execution=execution.name, reader=header["reader"]))
                return
            offsets[channel] = offset
        reader = Reader(int(header["reader"]), journal, offsets, int(header["credit_bytes"]))
        execution.readers[reader.name] = reader
        starts = {str(channel): offset for channel, offset in offsets.items()}
        self.send({"type": "subscribed", "execution": execution.name, "reader": reader.name, "offsets": starts})
        self.dirty[execution.name] = execution

    def pump(self, execution: Execution) -> None:
        """Sends readers what their credit allows."""
        for reader in list(execution.readers.values()):
            for chunk in reader.chunks():
                self.send(
                    {
                        "type": "output",
                        "execution": execution.name,
                        "reader": reader.name,
                        "channel": chunk.channel,
                        "offset": chunk.offset,
                        "time_s": round(chunk.time_s, 6),
                    },
                    chunk.data,
                )
            if execution.state == "ended" and reader.at_end:
                self.send({"type": "end", "execution": execution.name, "reader": reader.name})
                del execution.readers[reader.name]

    def on_acknowledge(self, execution: Execution, header: Dict[str, Any]) -> None:
        before = execution.journal.size
        for name, offset in header["offsets"].items():
            execution.journal.acknowledge(int(name), int(offset))
        self.journal_bytes -= before - execution.journal.size
        self.resume_paused()

    def resume_paused(self) -> None:
        """Reads pipes again that had to wait for room."""
        for execution in list(self.paused.values()):
            if execution.journal.size < JOURNAL_BYTES:
                del self.paused[execution.name]
                execution.told_full = False
                for channel in execution.paused:
                    if channel in execution.pipes:
                        self.watch_pipe(execution, channel)
                execution.paused.clear()

    # -- input

    def on_stdin(self, execution: Execution, offset: int, data: bytes) -> None:
        """Takes bytes for standard input; what came before is not taken twice."""
        if offset > execution.stdin_offset or len(execution.stdin_buffer) > STDIN_WINDOW_BYTES + MAX_PAYLOAD_BYTES:
            raise FrameError("input at offset %d, wanted %d" % (offset, execution.stdin_offset))
        fresh = data[execution.stdin_offset - offset :]
        execution.stdin_offset += len(fresh)
        execution.stdin_buffer += fresh
        self.write_stdin(execution)

    def write_stdin(self, execution: Execution) -> None:
        """Writes input as far as the program takes it, and tells the daemon."""
        if execution.state == "queued" or execution.state == "starting":
            return
        fd = execution.stdin_fd
        if fd is None:
            execution.stdin_buffer.clear()
        else:
            try:
                while execution.stdin_buffer:
                    written = os.write(fd, execution.stdin_buffer[:MAX_PAYLOAD_BYTES])
                    del execution.stdin_buffer[:written]
            except BlockingIOError:
                self.watch(fd, self.writable, lambda _: self.write_stdin(execution))
            except OSError:  # the program closed its input; the rest goes nowhere, as in a shell
                execution.stdin_buffer.clear()
                self.close_stdin(execution)
            if not execution.stdin_buffer and execution.stdin_fd is not None:
                self.unwatch(fd)
                if execution.stdin_ended:
                    self.close_stdin(execution)
        taken = execution.stdin_offset - len(execution.stdin_buffer)
        self.send({"type": "stdin_taken", "execution": execution.name, "offset": taken})

    def close_stdin(self, execution: Execution) -> None:
        if execution.stdin_fd is not None:
            self.unwatch(execution.stdin_fd)
            os.close(execution.stdin_fd)
            execution.stdin_fd = None

    # -- the end

    def complete(self, execution: Execution) -> None:
        """Takes the last output, writes the record of the end and frees what the execution held."""
        for channel in list(execution.pipes):
            # Whoever may write here is dead or has said that it is done, so what is in the pipe is all there is.
            budget = 2 * LARGE_PIPE_BYTES
            while budget > 0:
                read = self.read_pipe(execution, channel)
                if read <= 0:
                    break
                budget -= read
            self.close_pipe(execution, channel)
        self.close_stdin(execution)
        self.cancel(execution.timer)
        execution.stdin_buffer.clear()
        execution.job = bytearray()
        execution.enter("ended")
        self.active.pop(execution.name, None)
        self.paused.pop(execution.name, None)
        self.finish(execution)
        child, execution.child = execution.child, None
        if child is not None:
            child.execution = None
        context = self.contexts.get(execution.context_name or "")
        if context is not None:
            if context.current is execution:
                context.current = None
            self.next_in(context)
        self.records.append(execution)
        if len(self.records) > RECORDS_KEPT:
            unread = next((other for other in self.records if not other.readers), None)
            if unread is not None:
                self.forget(unread)
        if self.expiry is None:
            self.expiry = self.after(RECORD_KEPT_S, self.expire_records)

    def expire_records(self) -> None:
        """Forgets executions whose time is over, unless somebody still reads them."""
        now = time.monotonic()
        for execution in list(self.records):
            if execution.times["ended"] + RECORD_KEPT_S <= now and not execution.readers:
                self.forget(execution)
        self.expiry = self.after(RECORDS_EXPIRE_EVERY_S, self.expire_records) if self.records else None

    def finish(self, execution: Execution) -> None:
        times, status, claim = execution.times, execution.status, execution.claim
        context = self.contexts.get(execution.context_name or "")
        lives = context is not None and context.child is not None and status is None
        end: Dict[str, Any] = {"exit_code": None, "signal": None}
        if status is not None:
            if os.WIFSIGNALED(status):
                end["signal"] = os.WTERMSIG(status)
            else:
                end["exit_code"] = os.WEXITSTATUS(status)
        elif claim is not None:
            end["exit_code"] = claim["exit_code"]
        usage = execution.usage
        if usage is None and claim is not None:
            usage = claim["usage"]
        execution.finished = {
            "type": "finished",
            "execution": execution.name,
            "exit_code": end["exit_code"],
            "signal": end["signal"],
            "cause": execution.cause,
            "attested": status is not None or claim is None,
            "exception": claim["exception"] if claim is not None else None,
            "state_preserved": lives if execution.context_name is not None else None,
            "fresh_context": execution.fresh_context,
            "usage": usage,
            "bytes_total": {str(channel): total for channel, total in execution.journal.end.items()},
            "phases": {
                "queued_s": round(times["starting"] - times["queued"], 6),
                "starting_s": round(times["running"] - times["starting"], 6),
                "running_s": round(times["draining"] - times["running"], 6),
                "draining_s": round(times["ended"] - times["draining"], 6),
            },
        }
        self.send(execution.finished)
        self.dirty[execution.name] = execution

    def forget(self, execution: Execution) -> None:
        """Releases the record and the output of an execution that has ended."""
        if self.executions.get(execution.name) is execution:
            del self.executions[execution.name]
            if execution in self.records:
                self.records.remove(execution)
            self.journal_bytes -= execution.journal.size
            for reader in list(execution.readers.values()):
                self.send({"type": "unknown", "execution": execution.name, "reader": reader.name})
            self.resume_paused()


def _checked_claim(claim: Dict[str, Any]) -> Dict[str, Any]:
    """What the end of a program may claim, and nothing else: user code can write anything to its socket."""
    code, exception, usage = (claim.get(name) for name in ("exit_code", "exception", "usage"))
    if isinstance(exception, dict):
        number = exception.get("errno")
        exception = {
            "type": _cut(exception.get("type"), MAX_EXCEPTION_NAME_BYTES),
            "message": _cut(exception.get("message"), MAX_EXCEPTION_TEXT_BYTES),
            "errno": number if type(number) is int and 0 < number < 4096 else None,
        }
    else:
        exception = None
    numbers: Dict[str, Any] = {}
    for name in USAGE:
        number = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(number, (int, float)) and 0 <= number < 2**63:
            numbers[name] = number
    return {"exit_code": code & 0xFF if type(code) is int else None, "exception": exception, "usage": numbers}


def _stat(pid: int) -> Optional[Tuple[int, int]]:
    """Parent and session of a process; None if it is gone or dead. The name in the middle may contain anything.

    A leader that has ended looks dead (Z) while other threads of it run on; then it is not.
    """
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None
    return int(fields[1]), int(fields[3])


def _uid(pid: int) -> int:
    """The real user of a process; -1 if it is gone."""
    try:
        with open("/proc/%d/status" % pid, "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return -1


_LIBC: List[Any] = []  # the C library once it is loaded; the template loads it for all children


def _prctl(option: int, value: int) -> None:
    """Calls prctl(2) where the interpreter has ctypes; the container's own settings hold without it."""
    if not _LIBC:
        try:
            import ctypes
        except ImportError:
            return
        _LIBC.append(ctypes.CDLL(None))
    _LIBC[0].prctl(option, value, 0, 0, 0)


# -- the template and its children -------------------------------------------------------------------------------


def template_main(fd: int, settings: Dict[str, Any]) -> None:
    """Forks a standby child for each request. Returns only in such a child, when its program has ended."""
    import gc

    # Imported for the children, so that none of them has to; they import nothing of ours after the drop.
    import builtins  # noqa: F401
    import codecs  # noqa: F401
    import errno  # noqa: F401
    import io  # noqa: F401
    import linecache  # noqa: F401
    import resource  # noqa: F401
    import stat  # noqa: F401
    import atexit  # noqa: F401
    import threading  # noqa: F401
    import traceback  # noqa: F401
    import types  # noqa: F401

    os.close(globals()[CODE_FD])
    sys.path[:] = [entry for entry in sys.path if entry]  # without the place that -c puts first
    sys.argv[:] = [""]
    _prctl(4, 1)  # changes nothing here, but the library is loaded
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    while True:
        message, fds = _receive_fds(requests, 16, 1)
        if not message:
            os._exit(0)
        try:
            middle = os.fork()
        except OSError:  # the process or memory limit is reached; the guest sees its socket close
            os.close(fds[0])
            continue
        if middle == 0:
            try:
                if os.fork() != 0:
                    os._exit(0)
            except OSError:
                os._exit(1)
            requests.close()
            child_main(socket.socket(fileno=fds[0]), settings)
            return
        os.close(fds[0])
        os.waitpid(middle, 0)


def child_main(control: socket.socket, settings: Dict[str, Any]) -> None:
    """Prepares everything, waits for a job, drops to the sandbox's user and does it."""
    control.sendall(_claim({"hello": True}))  # now the guest knows this pid as its own
    if control.fileno() != 3:
        control = socket.socket(fileno=os.dup2(control.detach(), 3))
    os.set_inheritable(3, False)  # no command may have it
    try:
        _prepare(settings)
    except (OSError, RuntimeError, ValueError) as error:
        control.sendall(_claim({"failed": "%s: %s" % (type(error).__name__, error)}))
        os._exit(70)
    control.sendall(_claim({"ready": True}))
    text, is_context, fds = _receive_job(control)
    _install(fds)
    try:
        _drop(settings)
    except (OSError, RuntimeError, ValueError) as error:  # never run with more
        control.sendall(_claim({"failed": "%s: %s" % (type(error).__name__, error)}))
        os.kill(os.getpid(), signal.SIGKILL)
    job = json.loads(text)
    try:
        if job.get("operation") == "wipe":
            os.chmod(settings["working_dir"], 0o700)
        os.chdir(settings["working_dir"])
    except OSError as error:  # an earlier program closed it to itself
        os.write(2, ("%s: %s\n" % (settings["working_dir"], error.strerror)).encode())
        os._exit(126)
    if is_context:
        _serve_context(control, job)
    elif job["kind"] == "python":
        _run_python(control, job)
    elif job["kind"] == "command":
        _run_command(job)
    else:
        _run_file_job(control, job, settings)


def _prepare(settings: Dict[str, Any]) -> None:
    """Becomes a process of its own, with everything done that needs no job. Any step that fails ends it."""
    import resource

    os.setsid()
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(4, 4096)
    files = settings["open_files_limit"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings["file_size_limit_bytes"]:
        size = settings["file_size_limit_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if os.getuid() == 0:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS; the container has it already


def _drop(settings: Dict[str, Any]) -> None:
    """Becomes the sandbox's user, without any capability, and makes sure of it."""
    if os.getuid() != 0:
        return  # tests without root: there is nothing to drop
    uid = settings["uid"]
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (uid, uid, uid) or os.getgroups():
        raise RuntimeError("could not become user %d" % uid)
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("CapInh", "CapPrm", "CapEff", "CapAmb") and int(value, 16) != 0:
                raise RuntimeError("%s is %s after the drop" % (name, value.strip()))


def _receive_fds(sock: socket.socket, size: int, count: int) -> Tuple[bytes, List[int]]:
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(count * 4))
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return data, list(fds)


def _receive_job(control: socket.socket) -> Tuple[bytes, bool, List[int]]:
    """Waits for the bytes of a job and its three descriptors. The end of the guest is the end of this process."""
    try:
        data, fds = _receive_fds(control, 64 * 1024, 3)
        while data and (len(data) < 5 or len(data) < 5 + struct.unpack_from(">I", data)[0]):
            more = control.recv(1024 * 1024)
            data = data + more if more else b""
    except OSError:
        data = b""
    if not data:
        os._exit(0)
    return data[5:], bool(data[4]), fds


def _install(fds: List[int]) -> None:
    """Makes three descriptors the standard ones. They may be standard ones already, where a program closed those."""
    high = [fd if fd > 2 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds]
    for target, fd in enumerate(high):
        os.dup2(fd, target)
        os.close(fd)


def _claim(claim: Dict[str, Any]) -> bytes:
    text = json.dumps(claim).encode()
    return struct.pack(">I", len(text)) + text


def _cut(text: object, limit_bytes: int) -> str:
    """Makes text valid and short, also as JSON, where a character may take six bytes. Anything else is no text."""
    short = text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore") if isinstance(text, str) else ""
    while len(json.dumps(short)) > 2 * limit_bytes + 2:
        short = short[: len(short) // 2]
    return short


def _text_of(error: BaseException) -> str:
    """The text of an exception, whatever its class does to prevent that."""
    try:
        text = str(error)
    except BaseException:  # user code may raise anything here
        text = "<exception without a text>"
    return _cut(text, MAX_EXCEPTION_TEXT_BYTES)


def _hide_ours(error: BaseException) -> None:
    """Takes our own frames out of the tracebacks of an exception and of those that led to it."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        trace = each.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        each.__traceback__ = trace
        while trace is not None:
            if trace.tb_next is not None and trace.tb_next.tb_frame.f_code.co_filename == __file__:
                trace.tb_next = None  # our signal handler
            trace = trace.tb_next
        waiting += [each.__cause__, each.__context__]  # type: ignore[list-item]
        waiting += getattr(each, "exceptions", ())


class Interpreter:
    """Runs source as a script would, again and again, in one namespace."""

    def __init__(self, working_dir: str) -> None:
        import linecache
        import resource
        import traceback
        import types

        # Taken now: later the program may have put anything in their place.
        self.linecache, self.resource, self.traceback = linecache, resource, traceback
        main = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = sys.modules["builtins"]
        sys.modules["__main__"] = main
        self.namespace = main.__dict__
        self.calls = 0
        self.sources: Deque[Tuple[str, int]] = collections.deque()
        self.source_bytes = 0
        self.running = False
        version = "python%d.%d" % sys.version_info[:2]
        sys.path += [working_dir, os.path.join(working_dir, ".local", "lib", version, "site-packages")]
        signal.signal(signal.SIGINT, self.on_interrupt)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        _prctl(4, 1)  # PR_SET_DUMPABLE: the change of user cleared it, and /proc/self would be closed

    def on_interrupt(self, number: int, frame: Any) -> None:
        """Interrupts user code, and nothing else."""
        if self.running:
            raise KeyboardInterrupt

    def open_streams(self) -> None:
        """Gives the program usable standard streams, whatever the call before did to them."""
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # type: ignore[misc]
        for name, fd, errors in (("stdout", 1, "surrogateescape"), ("stderr", 2, "backslashreplace")):
            stream = getattr(sys, "__%s__" % name, None)
            if stream is None or stream.closed:
                stream = open(fd, "w", buffering=1, encoding="utf-8", errors=errors, closefd=False)
                setattr(sys, "__%s__" % name, stream)
            current = getattr(sys, name, None)
            if current is None or getattr(current, "closed", False):
                setattr(sys, name, stream)

    def remember_source(self, name: str, code: str) -> None:
        """Lets tracebacks show the source lines of the latest calls."""
        self.linecache.cache[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
        self.sources.append((name, len(code)))
        self.source_bytes += len(code)
        while len(self.sources) > 1 and (self.source_bytes > SOURCES_BYTES or len(self.sources) > SOURCES_KEPT):
            oldest, size = self.sources.popleft()
            self.source_bytes -= size
            self.linecache.cache.pop(oldest, None)

    def call(self, code: str) -> Dict[str, Any]:
        """Runs source and tells how it went: exit code, exception, resources."""
        self.calls += 1
        name = "<call %d>" % self.calls
        self.remember_source(name, code)
        self.open_streams()
        before = self.spent()
        exit_code, exception = 0, None
        try:
            self.running = True
            try:
                exec(compile(code, name, "exec", dont_inherit=True), self.namespace)
            finally:
                self.running = False
        except SystemExit as stop:
            exit_code = self.exit_code_of(stop)
        except BaseException as error:
            exit_code = 1
            exception = {"type": _cut(type(error).__name__, MAX_EXCEPTION_NAME_BYTES), "message": _text_of(error)}
            self.show(error)
        self.flush()
        after = self.spent()
        usage = {
            "cpu_user_s": sum(a.ru_utime - b.ru_utime for a, b in zip(after, before)),
            "cpu_system_s": sum(a.ru_stime - b.ru_stime for a, b in zip(after, before)),
            "memory_peak_bytes": max(a.ru_maxrss for a in after) * 1024,
            "io_read_bytes": sum(a.ru_inblock - b.ru_inblock for a, b in zip(after, before)) * 512,
            "io_write_bytes": sum(a.ru_oublock - b.ru_oublock for a, b in zip(after, before)) * 512,
        }
        return {"done": True, "call": self.calls, "exit_code": exit_code, "exception": exception, "usage": usage}

    def spent(self) -> List[Any]:
        """The resources used up to now, by this process and by its children."""
        resource = self.resource
        return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]

    def spare_files(self, count: int) -> None:
        """Keeps descriptors back for the time between calls, however many files the program holds open."""
        _, most = self.resource.getrlimit(self.resource.RLIMIT_NOFILE)
        try:
            self.resource.setrlimit(self.resource.RLIMIT_NOFILE, (most - count, most))
        except (OSError, ValueError):  # the program lowered its limit to next to nothing
            pass

    def exit_code_of(self, stop: SystemExit) -> int:
        """What the interpreter makes of sys.exit's argument."""
        if stop.code is None:
            return 0
        if isinstance(stop.code, int):
            return stop.code & 0xFF
        try:
            print(stop.code, file=sys.stderr)
        except BaseException:  # as the interpreter: whatever happens here, the code is 1
            pass
        return 1

    def show(self, error: BaseException) -> None:
        """Prints a traceback as the interpreter does, without our own frames."""
        try:
            _hide_ours(error)
            if sys.excepthook is sys.__excepthook__:  # which does not know the sources that linecache has
                self.traceback.print_exception(type(error), error, error.__traceback__)
            else:
                sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:  # a hook of user code, or no memory for a traceback
            try:
                os.write(2, ("%s: %s\n" % (type(error).__name__, _text_of(error))).encode("utf-8", "replace"))
            except OSError:
                pass

    def flush(self) -> None:
        """Pushes out what is buffered in any stream that the program may have used."""
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            try:
                getattr(sys, name).flush()
            except BaseException:  # closed, gone or hostile: the bytes it has are its own affair
                pass


def _serve_context(control: socket.socket, job: Dict[str, Any]) -> NoReturn:
    """Runs call after call in one interpreter."""
    own_pid = os.getpid()
    own_socket = os.fstat(control.fileno()).st_ino
    os.environ.clear()
    os.environ.update(job["env"])
    interpreter = Interpreter(os.getcwd())
    while True:
        interpreter.spare_files(RESERVED_FILES)
        outcome = interpreter.call(job["code"])
        if os.getpid() != own_pid:  # a fork of user code came back to us; it has no business here
            os._exit(outcome["exit_code"])
        interpreter.spare_files(0)
        null = os.open(os.devnull, os.O_RDWR)
        _install([os.dup(null), os.dup(null), null])
        try:
            if os.fstat(control.fileno()).st_ino != own_socket:
                os._exit(outcome["exit_code"])
            control.setblocking(True)  # user code may have changed that
            control.sendall(_claim(outcome))
        except OSError:  # user code closed or replaced the socket: the exit status has to speak
            os._exit(outcome["exit_code"])
        text, _, fds = _receive_job(control)
        _install(fds)
        job = json.loads(text)


def _run_python(control: socket.socket, job: Dict[str, Any]) -> NoReturn:
    """Runs source once, in this process, and ends as an interpreter ends: with atexit and its threads joined."""
    import atexit
    import gc
    import threading

    os.environ.clear()
    os.environ.update(job["env"])
    interpreter = Interpreter(os.getcwd())
    own_pid = os.getpid()
    outcome = interpreter.call(job["code"])
    if outcome["exception"] is not None and os.getpid() == own_pid:  # a fork of user code speaks for itself only
        try:
            control.sendall(_claim(outcome))
        except OSError:
            pass
    # What the interpreter does at its end, without the dismantling of every module, which costs 10 ms: threads are
    # joined, atexit runs, objects of the program go away, and with them the buffers of files left open.
    last_steps: List[Callable[[], Any]] = [
        threading._shutdown,  # type: ignore[attr-defined]
        atexit._run_exitfuncs,
        interpreter.namespace.clear,
        gc.collect,
    ]
    for step in last_steps:
        try:
            step()
        except BaseException:  # user code runs in all of these
            pass
    interpreter.flush()
    os._exit(outcome["exit_code"])


def _run_command(job: Dict[str, Any]) -> NoReturn:
    """Becomes a command. One that cannot be started ends as it would in a shell: 127 or 126."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if job.get("shell") is not None:
        shell = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")
        arguments = [shell, "-c", job["shell"]]
    else:
        arguments = job["argv"]
    try:
        os.execvpe(arguments[0], arguments, job["env"])
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "command not found" if missing else getattr(error, "strerror", None) or str(error)
        os.write(2, ("%s: %s\n" % (arguments[0], reason)).encode("utf-8", "surrogateescape"))
        os._exit(127 if missing else 126)


# -- files -------------------------------------------------------------------------------------------------------


class PathRefused(OSError):
    """A path that leads outside, or to something that is no file."""


def _run_file_job(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Does one thing to one path, as the user that this process has become."""
    try:
        if job["operation"] == "wipe":
            _wipe(settings["working_dir"], settings["scratch_dirs"])
            os._exit(0)
        path = _resolve(job["path"], settings["working_dir"], job["operation"] == "delete")
        {"read": _read, "write": _write, "delete": _delete, "list": _list, "exists": _exists}[job["operation"]](
            path, job
        )
    except (OSError, UnicodeError) as error:
        kind = "PathRefused" if isinstance(error, PathRefused) else type(error).__name__
        reason = (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace").decode()
        try:
            os.write(2, ("%s: %s\n" % (job["path"], reason)).encode("utf-8", "replace"))
            number = getattr(error, "errno", None)
            exception = {"type": kind, "message": reason[:MAX_EXCEPTION_TEXT_BYTES], "errno": number}
            control.sendall(_claim({"done": True, "exit_code": 1, "exception": exception}))
        finally:
            os._exit(1)
    os._exit(0)


def _resolve(path: str, working_dir: str, keep_last: bool) -> str:
    """Follows links and makes sure that the path ends in the working directory or /tmp.

    This process can open no more than user code can, so the check is there to tell mistakes, not to keep a secret.
    """
    import errno

    full = os.path.join(working_dir, path)
    folder, name = os.path.split(full.rstrip("/"))
    if keep_last and name not in ("", ".", ".."):
        full = os.path.join(os.path.realpath(folder), name)
    else:
        full = os.path.realpath(full)
    for root in (os.path.realpath(working_dir), "/tmp"):
        if full.startswith(root + "/") or (full == root and not keep_last):
            return full
        if full == root:
            raise PathRefused(errno.EXDEV, "%s itself cannot be deleted, only what is in it" % root)
    reason = "the path is outside the sandbox's directories (%s and /tmp)" % working_dir
    raise PathRefused(errno.EXDEV, reason)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _check_regular(mode: int) -> None:
    import errno
    import stat

    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise PathRefused(errno.EINVAL, "not a regular file")


def _open_regular(path: str) -> int:
    _check_regular(os.lstat(path).st_mode)  # opening may have effects of its own
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    _check_regular(os.fstat(fd).st_mode)
    return fd


def _read(path: str, job: Dict[str, Any]) -> None:
    import codecs

    fd = _open_regular(path)
    if job["offset"] > os.fstat(fd).st_size:
        return
    os.lseek(fd, job["offset"], os.SEEK_SET)
    left = job["length"]
    decoder = codecs.getincrementaldecoder(job["encoding"])() if job["encoding"] else None
    while left is None or left > 0:
        data = os.read(fd, 65536 if left is None else min(65536, left))
        if left is not None:
            left -= len(data)
        _write_all(1, decoder.decode(data, not data).encode("utf-8", "surrogateescape") if decoder else data)
        if not data:
            break


def _write(path: str, job: Dict[str, Any]) -> None:
    folder = os.path.dirname(path)
    if os.path.lexists(path):
        _check_regular(os.lstat(path).st_mode)
    if job["create_parents"]:
        os.makedirs(folder, 0o755, exist_ok=True)
    # Without a name until it is complete: whatever kills this process leaves nothing behind.
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    if job["content"] is not None:
        _write_all(fd, job["content"].encode(job["encoding"] or "utf-8"))
    else:
        while True:
            data = os.read(0, 65536)
            if not data:
                break
            _write_all(fd, data)
    os.fchmod(fd, job["mode"])
    _prctl(4, 1)  # to see /proc/self/fd
    temporary = os.path.join(folder, ".written-by-%d" % os.getpid())
    # Only with a directory descriptor does os.link use linkat, which follows /proc's links; it is not looked at.
    os.link("/proc/self/fd/%d" % fd, temporary, src_dir_fd=fd, follow_symlinks=True)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    _write_all(1, job["report"].encode())


def _delete(path: str, job: Dict[str, Any]) -> None:
    import stat

    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        if not is_directory:
            os.unlink(path)
        elif not job["recursive"]:
            os.rmdir(path)
        else:
            _delete_tree(path)
    except FileNotFoundError:
        if not job["missing_ok"]:
            raise
    _write_all(1, job["report"].encode())


def _delete_tree(path: str) -> None:
    for folder, folders, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            full = os.path.join(folder, name)
            if os.path.islink(full):
                os.unlink(full)
            else:
                os.rmdir(full)
    os.rmdir(path)


def _raise(error: OSError) -> NoReturn:
    raise error


def _exists(path: str, job: Dict[str, Any]) -> None:
    _write_all(1, b"exists" if os.path.lexists(path) else b"does not exist")


def _list(path: str, job: Dict[str, Any]) -> None:
    import stat

    if stat.S_ISDIR(os.stat(path).st_mode):
        entries = [(name, os.path.join(path, name)) for name in [".", ".."] + sorted(os.listdir(path))]
    else:
        entries = [(job["path"], path)]
    rows = []
    blocks = 0
    for name, full in entries:
        try:
            found = os.lstat(full)
        except OSError:  # gone since it was listed
            continue
        blocks += found.st_blocks // 2
        link = " -> " + os.readlink(full) if stat.S_ISLNK(found.st_mode) else ""
        when = time.strftime("%b %e %H:%M", time.localtime(found.st_mtime))
        row = (stat.filemode(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_size, when)
        rows.append("%s %3d %d %d %8d %s " % row + name + link)
    text = "\n".join((["total %d" % blocks] if len(entries) > 1 else []) + rows) + "\n"
    _write_all(1, text.encode("utf-8", "surrogateescape"))


def _wipe(working_dir: str, scratch_dirs: List[str]) -> None:
    """Removes all that the sandbox's user has kept outside processes, and reports what was there and what is left.

    Nothing of the user runs meanwhile. What resists is counted, not explained: the daemon makes another sandbox.
    """
    folders = [working_dir] + scratch_dirs
    removed = left = 0
    for folder in folders:
        if os.path.isdir(folder):
            removed += _empty(folder, folders)
            left += len(_own_entries(folder, folders))
    if scratch_dirs:  # else this is no container, and what it shares is not ours to remove
        objects = _shared_objects()
        for remove, number in objects:
            remove(number)
        still = len(_shared_objects())
        removed += len(objects) - still
        left += still
    _write_all(1, json.dumps({"removed": removed, "left": left}).encode())


def _own_entries(folder: str, kept: List[str]) -> List[Tuple[str, bool]]:
    """Paths of what this user has in a folder, and whether they are directories. Mount points are left out."""
    with os.scandir(folder) as entries:
        return [
            (entry.path, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if entry.path not in kept and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        ]


def _empty(folder: str, kept: List[str]) -> int:
    """Removes what this user has in a folder, however deep, and returns how much that was.

    A directory's own directories are moved up before it goes, so that no path gets long and nothing is recursive.
    """
    if os.stat(folder).st_uid == os.getuid():
        os.chmod(folder, 0o700)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
    removed = moved = 0
    while True:
        before = removed
        for path, is_directory in _own_entries(folder, kept):
            try:
                if is_directory:
                    os.chmod(path, 0o700)
                    for inner, is_inner_directory in _own_entries(path, kept):
                        if is_inner_directory:
                            os.chmod(inner, 0o700)
                            moved += 1
                            os.rename(inner, os.path.join(folder, ".wiped-%d-%d" % (os.getpid(), moved)))
                        else:
                            os.unlink(inner)
                            removed += 1
                    os.rmdir(path)
                else:
                    os.unlink(path)
                removed += 1
            except OSError:
                continue
        if removed == before:
            return removed


def _shared_objects() -> List[Tuple[Callable[[int], Any], int]]:
    """The shared memory, semaphores and message queues of System V that this user has, with what removes them."""
    calls: Dict[str, Callable[[int], Any]] = {
        "shm": lambda number: _LIBC and _LIBC[0].shmctl(number, 0, None),
        "sem": lambda number: _LIBC and _LIBC[0].semctl(number, 0, 0),
        "msg": lambda number: _LIBC and _LIBC[0].msgctl(number, 0, None),
    }
    found = []
    for kind, remove in calls.items():
        try:
            with open("/proc/sysvipc/%s" % kind) as table:
                names = table.readline().split()
                rows = [line.split() for line in table]
        except FileNotFoundError:  # a kernel without them
            continue
        found += [(remove, int(row[1])) for row in rows if int(row[names.index("uid")]) == os.getuid()]
    return found


def main(arguments: List[str]) -> None:
    """Starts one of the programs of this file."""
    if arguments[0] == "--template":
        template_main(int(arguments[1]), json.loads(arguments[2]))
    elif arguments[0] in ("--container", "--child") and CODE_FD not in globals():
        start_lean(sys._getframe(1).f_code, arguments)
    elif arguments[0] in ("--container", "--child"):
        Guest(arguments[0], arguments[1], json.loads(arguments[2])).serve()
    else:
        raise SystemExit("guest: unknown mode %r" % arguments[0])


def start_lean(code: Any, arguments: List[str]) -> NoReturn:
    """Becomes this program again, from code that is compiled already.

    What the compiler leaves in the heap is several MiB, in PID 1 and in the template, for each sandbox; and the
    template need not compile again.
    """
    import marshal

    fd = os.memfd_create("guest", 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(marshal.dumps(code))
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-E"] + lean_arguments(fd) + arguments)


def lean_arguments(fd: int) -> List[str]:
    """The arguments that make an interpreter run the compiled code behind an inherited descriptor."""
    names = "{'__name__': '__main__', '__file__': %r, %r: %d}" % (__file__, CODE_FD, fd)
    read = "os.pread(%d, os.fstat(%d).st_size, 0)" % (fd, fd)
    return ["-c", "import marshal, os; exec(marshal.loads(%s), %s)" % (read, names)]


if __name__ == "__main__":
    main(sys.argv[1:])
