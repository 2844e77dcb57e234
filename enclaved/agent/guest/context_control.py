"""The daemon's wishes about contexts: open, list, close, reset."""

from __future__ import annotations

import json
import os
import sys
import time

from .execution import Context
from .fields import count, text
from .frames import FrameError
from .limits import CONTEXT_NAME_BYTES, CONTEXTS_MAX, DEFAULT_CONTEXT, KILL_DEADLINE_S
from .openings import Opening
from .processes import belongs, kill_all, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

    from .children import Children
    from .cleaner import Cleaner
    from .contexts import Contexts
    from .executions import Executions
    from .link import Link
    from .loop import Loop
    from .nursery import Nursery
    from .processes import Processes

    Header = Dict[str, Any]


class ContextControl:
    """Opens and closes contexts, and tells of them. Each wish is answered once, when it is done or refused."""

    def __init__(
        self,
        loop: Loop,
        link: Link,
        processes: Processes,
        children: Children,
        nursery: Nursery,
        contexts: Contexts,
        cleaner: Cleaner,
        executions: Executions,
    ) -> None:
        self.loop, self.link, self.processes = loop, link, processes
        self.children, self.nursery, self.contexts = children, nursery, contexts
        self.cleaner, self.executions = cleaner, executions
        self.wishes: Dict[Context, List[int]] = {}  # numbers of those who wait for an interpreter

    def on_open(self, header: Header, payload: bytes) -> None:
        """Opens a context and starts its interpreter. One that is open and alive is left alone."""
        number, name = _asked(header)
        context = self.contexts.by_name.get(name)
        if context is None:
            if name != DEFAULT_CONTEXT and self.contexts.named() >= CONTEXTS_MAX:
                why = "%d contexts are open in this sandbox; close one of them first" % CONTEXTS_MAX
                self.refuse(number, "full", why)
                return
            context = self.contexts.add(name)
        if context.opening is not None:
            self.wishes[context].append(number)
        elif context.is_alive() or context.current is not None:
            self.tell(number, context)
        else:
            self.open(context, [number])

    def on_list(self, header: Header, payload: bytes) -> None:
        """Tells of all contexts, by name."""
        listed = [self.describe(context) for _, context in sorted(self.contexts.by_name.items())]
        self.link.send({"type": "contexts", "number": count(header, "number"), "contexts": listed})

    def on_close(self, header: Header, payload: bytes) -> None:
        """Ends a context, with everything that runs or waits in it."""
        number, name = _asked(header)
        context = self.contexts.by_name.pop(name, None)
        if context is None:
            self.refuse(number, "not_found", _NOT_FOUND % name)
        else:
            self.close(context, "close", lambda: self.tell(number, context))

    def on_reset(self, header: Header, payload: bytes) -> None:
        """Ends a context and opens it again. Calls that come meanwhile wait for the new interpreter."""
        number, name = _asked(header)
        context = self.contexts.by_name.pop(name, None)
        if context is None:
            self.refuse(number, "not_found", _NOT_FOUND % name)
            return
        successor = self.contexts.add(name)
        opening = self.prepare(successor, [number])
        self.close(context, "close", opening.begin)

    def open(self, context: Context, numbers: List[int]) -> None:
        """Starts the interpreter of a context."""
        self.prepare(context, numbers).begin()

    def prepare(self, context: Context, numbers: List[int]) -> Opening:
        """Lets the calls of a context wait for an interpreter that will be started."""
        self.wishes[context] = numbers
        return Opening(self.loop, self.nursery, self.children, context, self.on_opened)

    def on_opened(self, context: Context, reason: Optional[str]) -> None:
        """An interpreter is ready, or there will be none. A context that nobody uses then is not kept."""
        for number in self.wishes.pop(context):
            if reason is None:
                self.tell(number, context)
            else:
                self.refuse(number, "not_found" if context.closed else "no_process", reason)
        if reason is not None and not context.queue and not context.died:
            self.contexts.drop(context)
        self.contexts.next_in(context)

    def close(self, context: Context, cause: str, done: Callable[[], None]) -> None:
        """Kills everything of a context whose name is given up, and calls when nothing is left of it."""
        context.closed = True
        leader = context.child.pid if context.child is not None else 0
        kill_all(self.victims(leader), lambda: self.victims(leader))  # as long as it is known who descends from whom
        for execution in list(context.queue):
            self.executions.stop(execution, cause)
        if context.current is not None:
            self.executions.stop(context.current, cause)
        if context.opening is not None:
            context.opening.end("the context was closed before its interpreter was ready")
        self.next_round(context, leader, time.monotonic() + KILL_DEADLINE_S, done)

    def next_round(self, context: Context, leader: int, deadline: float, done: Callable[[], None]) -> None:
        """Kills what there is of a context, until nothing is left."""
        self.children.reap()
        victims = self.victims(leader)
        if not victims and leader not in self.children.by_pid and context.current is None:
            if context.late is not None:
                context.late.close()
            self.cleaner.sweep_strays()
            done()
        elif time.monotonic() > deadline:
            sys.stderr.write("guest: processes of a context cannot be killed: %s\n" % sorted(victims)[:20])
            os._exit(70)
        else:
            kill_all(victims, lambda: self.victims(leader))
            self.loop.after(0.002, lambda: self.next_round(context, leader, deadline, done))

    def victims(self, leader: int) -> Set[int]:
        """The interpreter and what it has started. Threads die with it."""
        if not leader:
            return set()
        pids = self.processes.listed()
        table = {pid: stat(pid) for pid in pids}
        return {pid for pid in pids if table[pid] is not None and (pid == leader or belongs(pid, table, leader))}

    def describe(self, context: Context) -> Header:
        """A context as the daemon hears of it."""
        return {
            "name": context.name,
            "calls": context.child.calls if context.child is not None else 0,
            "execution": context.current.name if context.current is not None else "",
            "queued": len(context.queue),
            "alive": context.is_alive(),
            "age_s": round(time.monotonic() - context.since, 6),
        }

    def tell(self, number: int, context: Context) -> None:
        """Answers with the state of a context."""
        self.link.send(dict(self.describe(context), type="context", number=number))

    def refuse(self, number: int, code: str, message: str) -> None:
        """Answers that a wish cannot be granted."""
        self.link.send({"type": "context_refused", "number": number, "code": code, "message": message})


_NOT_FOUND = "no context %r is open in this sandbox"


def _asked(header: Header) -> Tuple[int, str]:
    """The number and the name in a wish. Raises FrameError."""
    number, name = count(header, "number"), text(header, "name")
    if number is None or not name or len(json.dumps(name)) > CONTEXT_NAME_BYTES:
        raise FrameError("no wish about a context: %r" % header)
    return number, name
