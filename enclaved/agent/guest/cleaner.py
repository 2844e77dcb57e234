"""What programs leave behind dies: their trees, and strays for which no execution can answer."""

from __future__ import annotations

import os
import signal
import sys

from .limits import FEW, KILL_DEADLINE_S, SWEEP_ROUNDS
from .processes import belongs, kill_all, send_signal, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Set

    from .children import Children
    from .execution import Execution
    from .loop import Loop
    from .processes import Processes
    from .records import Records


class Cleaner:
    """Kills processes that nobody wants any more, round after round, until there is none."""

    def __init__(self, loop: Loop, processes: Processes, children: Children, records: Records) -> None:
        self.loop, self.processes, self.children, self.records = loop, processes, children, records

    def clear_tree(self, execution: Execution, done: Callable[[Execution], None]) -> None:
        """Kills what is left of an execution, and calls when nothing is."""
        if execution.state != "draining":
            return
        self.children.reap()
        left = self.left_behind(execution)
        if not left:
            done(execution)
            return
        execution.kill_deadline = execution.kill_deadline or self.loop.now() + KILL_DEADLINE_S
        if self.loop.now() > execution.kill_deadline:
            sys.stderr.write("guest: processes cannot be killed: %s\n" % sorted(left)[:20])
            os._exit(70)
        kill_all(left, lambda: self.left_behind(execution))
        execution.kill_rounds += 1
        self.children.reap()
        self.loop.after(0.0 if execution.kill_rounds < 5 else 0.002, lambda: self.clear_tree(execution, done))

    def halt(self, execution: Execution) -> None:
        """Stops what a program that is being killed has started, if that is much: its end would wait for all of it."""
        if len(self.processes.listed() - self.protected()) > FEW:
            for pid in self.left_behind(execution):
                send_signal(pid, signal.SIGSTOP)

    def left_behind(self, execution: Execution) -> Set[int]:
        """Processes of an execution that has ended: its own tree, and all strays if nothing else runs."""
        pids = self.processes.listed()
        if not pids - self.protected():
            return set()
        self.children.read_spawning()
        unknown = pids - self.protected()
        if len(self.records.active) == 1:
            return self.processes.users_among(unknown)
        table = {pid: stat(pid) for pid in pids}
        return {pid for pid in unknown if table[pid] is not None and belongs(pid, table, execution.pid)}

    def sweep_strays(self, rounds: int = SWEEP_ROUNDS) -> None:
        """Kills what no execution can answer for, now that none runs, until nothing is left of it."""
        if self.records.active or not self.processes.privileged:
            return
        self.children.reap()
        strays = self.strays()
        if strays and rounds:
            kill_all(strays, self.strays)
            self.loop.after(0.002, lambda: self.sweep_strays(rounds - 1))

    def strays(self) -> Set[int]:
        """Processes of the user that are not ours."""
        return self.processes.users_among(self.processes.listed() - self.protected())

    def protected(self) -> Set[int]:
        """Processes that a sweep leaves alone: they are known, alive or not yet reaped."""
        return {1, os.getpid()} | set(self.children.helpers) | set(self.children.by_pid)
