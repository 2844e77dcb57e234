"""Signals to programs, from the daemon's `signal` frames and from our own wish to interrupt a call."""

from __future__ import annotations

import signal

from .frames import FrameError
from .limits import SIGNALS_KEPT
from .processes import belongs, send_signal, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .execution import Execution
    from .processes import Processes

_NUMBER_MAX = 64


class Signals:
    """Delivers signals to programs that run, and keeps them for those that do not yet."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def on_signal(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Signals a program: its leader, or its whole tree. One that has ended is left in peace."""
        number, leader_only = header["number"], header.get("leader_only", False)
        if type(number) is not int or not 1 <= number <= _NUMBER_MAX or type(leader_only) is not bool:
            raise FrameError("no signal: %r" % number)
        self.send(execution, number, leader_only, asked=True)

    def interrupt(self, execution: Execution) -> None:
        """Asks the program of a context to stop."""
        self.send(execution, signal.SIGINT, leader_only=True, asked=False)

    def begin(self, execution: Execution) -> None:
        """Delivers what came before the program ran."""
        waiting, execution.signals = execution.signals, []
        for number, leader_only, asked in waiting:
            self.send(execution, number, leader_only, asked)

    def send(self, execution: Execution, number: int, leader_only: bool, asked: bool) -> None:
        """Delivers a signal, or keeps it. A signal that somebody asked for is in the report of the end."""
        begun = execution.begun or number == signal.SIGKILL  # which ends the interpreter, whatever it is at
        if execution.state in ("queued", "starting") or (execution.state == "running" and not begun):
            if len(execution.signals) < SIGNALS_KEPT:
                execution.signals.append((number, leader_only, asked))
        elif execution.state == "running" and execution.child is not None:
            if asked and number not in execution.signalled:
                execution.signalled.append(number)
            execution.child.was_signalled = True
            send_signal(execution.pid, number)
            if not leader_only:
                self.signal_tree(execution.pid, number)

    def signal_tree(self, leader: int, number: int) -> None:
        """Signals the processes of a leader's session, and its descendants in others, but not itself."""
        table = {pid: stat(pid) for pid in self.processes.listed()}
        for pid in table:
            if pid != leader and belongs(pid, table, leader):
                send_signal(pid, number)
