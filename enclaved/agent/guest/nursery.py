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

from .limits import RETRY_S, SPAWN_DEADLINE_S, SPAWN_PATIENCE_S, STANDBY_CHILDREN
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, Optional

    from .children import Child, Children
    from .execution import Execution
    from .loader import Bundle
    from .loop import Loop, Timer

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Wish:
    """Somebody waits for a child."""

    __slots__ = ("deadline", "give", "owner", "refuse")

    def __init__(self, owner: object, give: Callable[[Child], None], refuse: Callable[[str], None]) -> None:
        self.deadline = time.monotonic() + SPAWN_DEADLINE_S
        self.owner, self.give, self.refuse = owner, give, refuse


class Nursery:
    """Keeps the template and standby children, and gives a child to each execution that asks for one.

    ``start`` and ``refuse`` are set by whoever puts the guest together: an execution has its child, or there is none
    in time.
    """

    start: Callable[[Execution, Child], None]
    refuse: Callable[[Execution, str, str], None]

    def __init__(self, loop: Loop, children: Children, bundle: Bundle, settings: Dict[str, Any]) -> None:
        self.loop, self.children, self.bundle, self.settings = loop, children, bundle, settings
        self.template: Optional[socket.socket] = None
        self.standby: Deque[Child] = collections.deque()
        self.waiting: Deque[Wish] = collections.deque()
        self.spawn_failure = ""

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
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        # Without the user's own packages (-s): they lie where user code may write, and could name code to run at once.
        arguments = [sys.executable, "-s"] + self.bundle.arguments()
        arguments += ["--template", str(requests.fileno()), json.dumps(self.settings)]
        env = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": self.settings["working_dir"]}
        os.execve(sys.executable, arguments, env)

    def refill(self) -> None:
        """Asks the template for as many children as are wanted and not yet on their way."""
        wanted = STANDBY_CHILDREN + len(self.waiting) - len(self.standby) - len(self.children.spawning)
        for _ in range(min(wanted, 16)):
            if self.template is None:
                return  # it is being started, which ends here again
            try:
                ours, theirs = socket.socketpair()
            except OSError:
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
            self.expect(self.children.add(ours))

    def expect(self, child: Child) -> None:
        """Waits for a child, but not for ever."""
        child.patience = self.loop.after(SPAWN_PATIENCE_S, lambda: self.give_up(child))

    def give_up(self, child: Child) -> None:
        """A child that does not become ready was stopped by user code, or starves; another one takes its place."""
        if child in self.children.spawning:
            kill(child.pid)
            self.children.silence(child)

    def on_ready(self, child: Child) -> None:
        """Gives a new child to who waits longest, or keeps it."""
        self.loop.cancel(child.patience)
        if self.waiting:
            self.waiting.popleft().give(child)
        else:
            self.standby.append(child)

    def on_failed(self, why: str) -> None:
        """Remembers why a child cannot be prepared, for those who wait in vain."""
        self.spawn_failure = why
        sys.stderr.write("guest: a child could not be prepared: %s\n" % why)

    def on_silent(self, child: Child, unready: bool) -> None:
        """Replaces a child that is gone before it had a job."""
        if unready:
            self.loop.after(0.02, self.refill)
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
        execution.timer = self.grant(wish)

    def request(self, owner: object, give: Callable[[Child], None], refuse: Callable[[str], None]) -> None:
        """Gives a child to whoever needs one for something else; ``refuse`` is told why there is none in time."""
        self.grant(Wish(owner, give, refuse))

    def grant(self, wish: Wish) -> Optional[Timer]:
        """Grants a wish if it can be; else it waits until the timer that is returned."""
        timer = None
        if self.standby:
            wish.give(self.standby.popleft())
        else:
            self.waiting.append(wish)
            timer = self.loop.after(SPAWN_DEADLINE_S, self.refuse_late)
        self.refill()
        return timer

    def withdraw(self, owner: object) -> None:
        """Somebody waits for a child no more."""
        self.waiting = collections.deque(wish for wish in self.waiting if wish.owner is not owner)

    def refuse_late(self) -> None:
        """Gives up on executions for which no process could be made in time."""
        now = time.monotonic()
        while self.waiting and self.waiting[0].deadline <= now:
            why = self.spawn_failure or "its process or memory limit is exhausted"
            text = "no process could be started in the sandbox: " + why
            self.waiting.popleft().refuse(text)
