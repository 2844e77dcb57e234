"""Interpreters that start before anybody calls them."""

from __future__ import annotations

import json
import os
import signal
import time

from .handover import HEADER, IN_CONTEXT
from .limits import SPAWN_DEADLINE_S
from .processes import send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from .children import Child, Children
    from .execution import Context
    from .loop import Loop, Timer
    from .nursery import Nursery

JOB = json.dumps({"kind": "python", "open": True}).encode()


class Opening:
    """The start of the interpreter of one context. Its calls wait meanwhile.

    ``on_end`` is called once: with None when the interpreter is ready, else with the reason why there is none.
    """

    def __init__(
        self,
        loop: Loop,
        nursery: Nursery,
        children: Children,
        context: Context,
        on_end: Callable[[Context, Optional[str]], None],
    ) -> None:
        self.loop, self.nursery, self.children = loop, nursery, children
        self.context, self.on_end = context, on_end
        self.child: Optional[Child] = None
        self.deadline: Optional[Timer] = None
        context.opening = self

    def begin(self) -> None:
        """Takes a child, now or as soon as there is one."""
        if self.context.opening is self:
            self.nursery.request(self, self.start, self.end)

    def start(self, child: Child) -> None:
        """Makes a child the interpreter."""
        theirs: List[int] = []
        try:
            theirs.extend(os.open(os.devnull, os.O_RDWR) for _ in range(3))
        except OSError as error:
            for fd in theirs:
                os.close(fd)
            self.nursery.standby.append(child)
            self.end("no descriptors for another interpreter in this sandbox: %s" % error.strerror)
            return
        self.child, child.keeper = child, self
        self.context.settle(child)
        self.deadline = self.loop.after(SPAWN_DEADLINE_S, lambda: self.end("the interpreter did not become ready"))
        send_signal(child.pid, signal.SIGCONT)  # a stopped child would look like one that hangs
        self.children.give(child, HEADER.pack(len(JOB), IN_CONTEXT, time.monotonic()) + JOB, theirs)

    def on_claim(self, child: Child, claim: Dict[str, Any]) -> None:
        """The interpreter says that it is ready."""
        if claim.get("opened") is True:
            child.keeper = None
            self.child = None
            self.end(None)
        else:
            self.end("the interpreter did not say that it is ready")

    def on_gone(self, child: Child) -> None:
        """The interpreter ended before it was ready."""
        self.end("another program of the sandbox killed the interpreter before it was ready")

    def end(self, reason: Optional[str]) -> None:
        """Ends the opening, well or not. Once is enough."""
        context = self.context
        if context.opening is not self:
            return
        context.opening = None
        self.loop.cancel(self.deadline)
        self.nursery.withdraw(self)
        if self.child is not None:
            context.child = None
            self.children.discard(self.child)
        self.on_end(context, reason)
