"""Notices that a program waits for input which nobody sends.

Only executions for which the daemon asked are looked at, a few times a second: first at what costs little. A program
that has read, written, computed or started something since the last look does not wait. Of one that has been quiet the
observer must say that it is blocked on its terminal or its standard input.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from .limits import WATCH_AGAIN_S, WATCH_EVERY_S
from .usage import trees_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .execution import Execution
    from .link import Link
    from .loop import Loop, Timer
    from .observation import Answer, Observer, Target
    from .usage import Process, Sampler

_FIONREAD = 0x541B
_TIOCGPTN = 0x80045430  # which terminal a master belongs to
_TERMINALS_MAJOR = 136


class Watch:
    """What is known of one execution: how it looked last time, and what the daemon has been told."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.looks: Optional[Tuple[Any, ...]] = None
        self.asked_at = 0.0
        self.asking = False
        self.waiting = False


class InputWatch:
    """Looks at all executions that are watched, at the same moments."""

    def __init__(self, loop: Loop, link: Link, sampler: Sampler, observer: Observer) -> None:
        self.loop, self.link, self.sampler, self.observer = loop, link, sampler, observer
        self.watches: Dict[str, Watch] = {}
        self.timer: Optional[Timer] = None

    def on_watch_input(self, execution: Execution, header: Dict[str, Any], payload: bytes) -> None:
        """Watches an execution from now on. A daemon that is back hears again what it waits for."""
        if execution.state in ("draining", "ended"):
            return
        watch = self.watches.setdefault(execution.name, Watch(execution))
        if watch.waiting:
            self.say(watch, True)
        if self.timer is None:
            self.timer = self.loop.after(WATCH_EVERY_S, self.tick)

    def on_input(self, execution: Execution) -> None:
        """Input has come, or its end: whoever waited for it goes on."""
        watch = self.watches.get(execution.name)
        if watch is not None:
            watch.looks = None
            if watch.waiting:
                self.say(watch, False)

    def tick(self) -> None:
        """Looks at each execution that may wait."""
        awaiting = {}
        for watch in list(self.watches.values()):
            execution = watch.execution
            if execution.state in ("draining", "ended"):
                del self.watches[execution.name]
            elif execution.state == "running" and not watch.asking:
                target = awaited(execution)
                if target is not None:
                    awaiting[execution.pid] = watch, target
                elif watch.waiting:
                    self.say(watch, False)
        if awaiting:
            table = self.sampler.look(max(awaiting))
            trees = trees_of(table, awaiting)
            for leader, (watch, target) in awaiting.items():
                self.look(watch, target, table, trees[leader])
        self.timer = self.loop.after(WATCH_EVERY_S, self.tick) if self.watches else None

    def look(self, watch: Watch, target: Target, table: Dict[int, Process], tree: List[int]) -> None:
        """Asks about an execution that has become quiet, or is thought to wait; about a quiet one again each second."""
        execution = watch.execution
        ticks = sum(table[pid].user_ticks + table[pid].system_ticks for pid in tree)
        looks = (tree, ticks, execution.stdin_offset, sum(execution.journal.end.values()))
        quiet = looks == watch.looks
        watch.looks = looks
        now = time.monotonic()
        if not quiet:
            watch.asked_at = 0.0
        if (quiet or watch.waiting) and now - watch.asked_at >= WATCH_AGAIN_S:
            watch.asking, watch.asked_at = True, now
            offset = execution.stdin_offset
            self.observer.ask(tree, target, lambda answer: self.on_answer(watch, offset, answer))

    def on_answer(self, watch: Watch, offset: int, answer: Optional[Answer]) -> None:
        """Tells the daemon what is new. No answer is no news, and input that came meanwhile makes it an old one."""
        watch.asking = False
        execution = watch.execution
        if answer is None or execution.state != "running" or execution.stdin_offset != offset:
            return
        execution.used.add_transfer(answer.read_bytes, answer.written_bytes)
        waiting = answer.waiting and awaited(execution) is not None
        if waiting != watch.waiting:
            self.say(watch, waiting)

    def say(self, watch: Watch, waiting: bool) -> None:
        """Tells the daemon whether a program waits."""
        watch.waiting = waiting
        self.link.send({"type": "awaiting_input", "execution": watch.execution.name, "waiting": waiting})


def awaited(execution: Execution) -> Optional[Target]:
    """What a program could wait for; None while it has input to read, and where no more can come."""
    if execution.stdin_ended or execution.stdin_buffer or execution.stdin_fd is None:
        return None
    fd = execution.stdin_fd
    if execution.terminal is not None:  # with a line that is not complete it waits, too
        (number,) = struct.unpack("I", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
        return "terminal", os.makedev(_TERMINALS_MAJOR, number)
    if struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, bytes(4)))[0] > 0:
        return None
    return "pipe", os.fstat(fd).st_ino
