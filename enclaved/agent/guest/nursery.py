"""Where children come from: the template, and the standby children that it forks ahead of demand."""

from __future__ import annotations

import array
import collections
import json
import os
import signal
import socket
import sys
import time

from .limits import (
    RETRY_S,
    SPAWN_DEADLINE_S,
    SPAWN_LOOK_S,
    SPAWN_LOST_S,
    SPAWN_PATIENCE_S,
    SPAWN_RETRY_S,
    SPAWNS_AT_ONCE,
    STANDBY_CHILDREN,
)
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, Optional, Tuple

    from .children import Child, Children
    from .descriptors import Descriptors
    from .execution import Execution
    from .loader import Bundle
    from .loop import Loop, Timer

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Wish:
    """Somebody waits for a child."""

    __slots__ = ("give", "owner", "refuse", "since")

    def __init__(self, owner: object, give: Callable[[Child], None], refuse: Callable[[str], None]) -> None:
        self.since = time.monotonic()
        self.owner, self.give, self.refuse = owner, give, refuse


class Nursery:
    """Keeps the template and standby children, and gives a child to each execution that asks for one.

    ``start`` and ``refuse`` are set by whoever puts the guest together: an execution has its child, or there is none
    in time. The template makes one child after the other, so only a few are asked for at a time; and however many wait,
    nobody is refused as long as children become ready.
    """

    start: Callable[[Execution, Child], None]
    refuse: Callable[[Execution, str, str], None]

    def __init__(
        self, loop: Loop, children: Children, bundle: Bundle, settings: Dict[str, Any], descriptors: Descriptors
    ) -> None:
        self.loop, self.children, self.bundle, self.settings = loop, children, bundle, settings
        self.descriptors = descriptors
        self.template: Optional[socket.socket] = None
        self.standby: Deque[Child] = collections.deque()
        self.waiting: Deque[Wish] = collections.deque()
        self.spawn_failure = ""  # why the last child came to nothing, unless one has become ready since
        self.progress_at = 0.0  # when the last child became ready
        self.alarm: Optional[Timer] = None

    def start_template(self) -> None:
        """Starts the clean interpreter from which all children come."""
        if self.template is not None:
            self.template.close()
            self.template = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self.loop.after(RETRY_S, self.start_template)
            return
        try:
            pid = os.fork()
        except OSError:  # the process limit is used up; strays die with their executions
            ours.close()
            theirs.close()
            self.loop.after(RETRY_S, self.start_template)
            return
        if pid == 0:
            try:
                self.become_template(theirs)
            finally:
                os._exit(127)
        theirs.close()
        ours.setblocking(False)
        self.template = ours
        self.children.helpers[pid] = self.on_template_exit
        self.refill()

    def on_template_exit(self) -> None:
        """Replaces a template that has ended, which user code cannot bring about, but lack of memory can."""
        self.loop.after(0.05, self.start_template)

    def become_template(self, requests: socket.socket) -> None:
        """Makes this process, which was just forked, the template: with all that an interpreter of the image has."""
        os.set_inheritable(requests.fileno(), True)
        os.set_inheritable(self.bundle.fd, True)
        os.chdir("/")
        for number in signal.valid_signals():  # also what whoever started us ignores, or programs would as well
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        # Without the user's own packages (-s): they lie where user code may write, and could name code to run at once.
        arguments = [sys.executable, "-s"] + self.bundle.arguments()
        arguments += ["--template", str(requests.fileno()), json.dumps(self.settings)]
        env = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": self.settings["working_dir"]}
        os.execve(sys.executable, arguments, env)

    def refill(self) -> None:
        """Asks the template for as many children as are wanted and not yet on their way."""
        spawning = self.children.spawning
        overdue_since = time.monotonic() - SPAWN_PATIENCE_S
        hopeful = sum(max(child.asked_at, self.progress_at) > overdue_since for child in spawning)
        wanted = STANDBY_CHILDREN + len(self.waiting) - len(self.standby) - hopeful
        for _ in range(min(wanted, SPAWNS_AT_ONCE - len(spawning))):
            if self.template is None:
                return  # it is being started, which ends here again
            try:
                ours, theirs = self.new_pair()
            except OSError:
                self.spawn_failure = "too many programs with their pipes run in it"
                self.loop.after(RETRY_S, self.refill)
                return
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setblocking(False)
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
                self.template.sendmsg([b"fork"], rights)
            except OSError:  # the template is busy, or died and its exit starts another one
                ours.close()
                self.loop.after(RETRY_S, self.refill)
                return
            finally:
                theirs.close()
            self.children.add(ours)
        self.keep_looking()

    def new_pair(self) -> Tuple[socket.socket, socket.socket]:
        """Makes the socket of a new child. Raises OSError where too few descriptors are left."""
        ours, theirs = socket.socketpair()
        try:
            self.descriptors.check(theirs.fileno())
        except OSError:
            ours.close()
            theirs.close()
            raise
        return ours, theirs

    def keep_looking(self) -> None:
        """Looks again soon at those who wait and those who are waited for."""
        if self.alarm is None and (self.waiting or self.children.spawning):
            self.alarm = self.loop.after(SPAWN_LOOK_S, self.look)

    def look(self) -> None:
        """Gives up on children and on wishes for which nothing has moved for too long."""
        self.alarm = None
        now = time.monotonic()
        for child in list(self.children.spawning):
            idle_s, age_s = now - max(child.asked_at, self.progress_at), now - child.asked_at
            if idle_s >= SPAWN_DEADLINE_S or age_s >= SPAWN_LOST_S:  # it was stopped, or starves
                kill(child.pid)
                self.children.silence(child)
        while self.waiting and now - max(self.waiting[0].since, self.progress_at) >= SPAWN_DEADLINE_S:
            why = self.spawn_failure or "the programs that run in it leave no time for another one"
            text = "no process could be started in the sandbox for %g seconds: %s" % (SPAWN_DEADLINE_S, why)
            self.waiting.popleft().refuse(text)
        self.refill()
        self.keep_looking()

    def on_ready(self, child: Child) -> None:
        """Gives a new child to who waits longest, or keeps it."""
        self.progress_at = time.monotonic()
        self.spawn_failure = ""
        if self.waiting:
            self.waiting.popleft().give(child)
            self.refill()
        else:
            self.standby.append(child)

    def on_failed(self, why: str) -> None:
        """Remembers why a child cannot be prepared, for those who wait in vain."""
        self.spawn_failure = why
        sys.stderr.write("guest: a child could not be prepared: %s\n" % why)

    def on_silent(self, child: Child, unready: bool) -> None:
        """Replaces a child that is gone before it had a job."""
        if unready:
            if child.pid and not child.failed:
                self.spawn_failure = "one was killed before it was ready, as happens where the memory limit is reached"
            self.loop.after(SPAWN_RETRY_S, self.refill)
        elif child in self.standby:
            self.standby.remove(child)
            self.refill()

    def take(self, execution: Execution) -> None:
        """Starts an execution in a standby child, now or as soon as there is one."""
        wish = Wish(
            execution,
            lambda child: self.start(execution, child),
            lambda reason: self.refuse(execution, "no_process", reason),
        )
        self.grant(wish)

    def request(self, owner: object, give: Callable[[Child], None], refuse: Callable[[str], None]) -> None:
        """Gives a child to whoever needs one for something else; ``refuse`` is told why there is none in time."""
        self.grant(Wish(owner, give, refuse))

    def grant(self, wish: Wish) -> None:
        """Grants a wish if it can be; else it waits."""
        if self.standby:
            wish.give(self.standby.popleft())
        else:
            self.waiting.append(wish)
        self.refill()

    def withdraw(self, owner: object) -> None:
        """Somebody waits for a child no more."""
        self.waiting = collections.deque(wish for wish in self.waiting if wish.owner is not owner)
