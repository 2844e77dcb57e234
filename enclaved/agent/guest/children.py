"""The processes that the template made, as the guest sees them: what they are sent, what they say, how they end."""

from __future__ import annotations

import array
import collections
import json
import os
import socket
import struct
import time

from .claims import checked_claim
from .limits import CLAIMS_AT_ONCE, MAX_CLAIM_BYTES
from .loop import READABLE, WRITABLE
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple, Union

    from .execution import Context, Execution
    from .loop import Loop
    from .observation import Observer
    from .openings import Opening

    Keeper = Union[Observer, Opening]


class Child:
    """A process made by the template: standby first, then at one job or a context."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked_at = time.monotonic()
        self.pid = 0  # as the kernel tells it; 0 until its first message
        self.execution: Optional[Execution] = None
        self.context: Optional[Context] = None
        self.outgoing: Deque[Tuple[bytes, List[int]]] = collections.deque()
        self.incoming = bytearray()
        self.silent = False  # it closed its end
        self.failed = False  # it has said why it could not be made ready
        self.unread = False  # it died without having read all that was sent to it
        self.was_signalled = False  # in its call that runs or was the last
        self.calls = 0  # that ended in it, where it is a context
        self.keeper: Optional[Keeper] = None  # who hears its claims, where that is no program or call


class Children:
    """Talks with all children, and collects the processes that have ended.

    The ``on_`` callables are set by whoever puts the guest together: a child that was asked for is ready or cannot be,
    is silent from now on (whether before it was ready), claims that its call has begun, or that its program or call has
    ended, or has ended itself.
    """

    on_ready: Callable[[Child], None]
    on_failed: Callable[[str], None]
    on_silent: Callable[[Child, bool], None]
    on_begun: Callable[[Child], None]
    on_done: Callable[[Child, Dict[str, Any]], None]
    on_exit: Callable[[Child, int, Any], None]

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.by_pid: Dict[int, Child] = {}
        self.spawning: List[Child] = []  # asked for, and not ready yet
        self.helpers: Dict[int, Callable[[], None]] = {}  # other processes of ours, and what to do when they end
        self.early_exits: Dict[int, Tuple[float, int, Any]] = {}

    def add(self, sock: socket.socket) -> Child:
        """Listens to a child that was just asked for."""
        child = Child(sock)
        self.spawning.append(child)
        self.loop.watch(sock.fileno(), READABLE, lambda events: self.on_event(child, events))
        return child

    def on_event(self, child: Child, events: int) -> None:
        """Writes and reads as far as the socket of a child is ready for it."""
        if events & WRITABLE:
            self.write(child)
        if events & ~WRITABLE:
            self.read(child)

    def write(self, child: Child) -> None:
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
                self.silence(child)
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                child.outgoing.appendleft((data[sent:], []))
        events = READABLE | WRITABLE if child.outgoing else READABLE
        self.loop.watch(child.sock.fileno(), events, lambda ready: self.on_event(child, ready))

    def read_spawning(self) -> None:
        """Hears those that were asked for: whoever exists and is ours has said so by then."""
        for child in list(self.spawning):
            self.read(child)

    def read(self, child: Child) -> None:
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
                        pid = struct.unpack("iii", value[:12])[0]
                        if pid and pid not in self.helpers:  # the template speaks for what it could not make
                            child.pid = pid
                            self.by_pid[pid] = child
            if not data:
                self.silence(child)
                break
            child.incoming += data
            while len(child.incoming) >= 4 and not child.silent:
                (size,) = struct.unpack_from(">I", child.incoming)
                if size > MAX_CLAIM_BYTES:
                    self.reject(child)
                    break
                if len(child.incoming) < 4 + size:
                    break
                text = bytes(child.incoming[4 : 4 + size])
                del child.incoming[: 4 + size]
                self.on_claim(child, text)
        early = self.early_exits.pop(child.pid, None)
        if early is not None and early[0] >= child.asked_at:  # older ones were somebody else's of the same number
            self.bury(child, *early[1:])

    def on_claim(self, child: Child, text: bytes) -> None:
        """Does what a claim asks for where the child may ask for it."""
        try:
            claim = json.loads(text)
        except (ValueError, RecursionError):
            claim = None
        if not isinstance(claim, dict):
            self.reject(child)
        elif child.keeper is not None:
            child.keeper.on_claim(child, claim)
        elif "ready" in claim:
            if child in self.spawning:
                self.spawning.remove(child)
                self.on_ready(child)
        elif "failed" in claim and child in self.spawning:
            child.failed = True
            self.on_failed(str(claim["failed"])[:1000])
        elif "begun" in claim:
            self.on_begun(child)
        elif "done" in claim and (
            child.execution is None or (child.context is not None and claim.get("call") != child.calls + 1)
        ):  # nobody asked for this end: user code plays with the socket
            self.reject(child)
        elif "done" in claim and child.execution is not None and child.execution.state == "running":
            self.on_done(child, checked_claim(claim))

    def reject(self, child: Child) -> None:
        """Kills a child that says what none of ours says."""
        self.silence(child)
        kill(child.pid)

    def give(self, child: Child, data: bytes, fds: List[int]) -> None:
        """Sends bytes and descriptors to a child. The descriptors are closed here."""
        child.outgoing.append((data, fds))
        self.write(child)

    def discard(self, child: Child) -> None:
        """Ends a child that nobody needs any more."""
        child.keeper = None
        if not child.silent:
            self.silence(child)
        kill(child.pid)

    def silence(self, child: Child) -> None:
        """A child closed its end: it died, or became another program, or lies. wait4 knows."""
        child.silent = True
        self.loop.unwatch(child.sock.fileno())
        child.unread = child.unread or bool(child.outgoing)
        for _, fds in child.outgoing:
            for fd in fds:
                os.close(fd)
        child.outgoing.clear()
        child.sock.close()
        unready = child in self.spawning
        if unready:
            self.spawning.remove(child)
        self.on_silent(child, unready)
        if child.keeper is not None:
            child.keeper.on_gone(child)

    def reap(self) -> None:
        """Collects every process that has ended, ours and orphans alike."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            on_end = self.helpers.pop(pid, None)
            child = self.by_pid.get(pid)
            if on_end is not None:
                on_end()
            elif child is not None:
                self.bury(child, status, usage)
            elif self.spawning:
                if len(self.early_exits) > 1024:
                    self.early_exits.clear()
                self.early_exits[pid] = (time.monotonic(), status, usage)
            else:
                self.early_exits.clear()

    def bury(self, child: Child, status: int, usage: Any) -> None:
        """Takes leave of a child that has ended, with what the kernel tells of it."""
        if not child.silent:
            self.read(child)  # the last claim came before the exit
        if not child.silent:
            self.silence(child)
        self.by_pid.pop(child.pid, None)
        self.on_exit(child, status, usage)
