"""The life of an execution: it gets a child, runs, is stopped or ends, and is reported."""

from __future__ import annotations

import os
import signal
import time

from .handover import AT_TERMINAL, HEADER, IN_CONTEXT, SAY_BEGUN
from .late import Late
from .limits import INTERRUPT_GRACE_S, MAX_PAYLOAD_BYTES, STARTS_MAX
from .processes import kill, send_signal
from .report import finished_frame, usage_of
from .usage import full_file_systems

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .children import Child, Children
    from .cleaner import Cleaner
    from .contexts import Contexts
    from .execution import Execution
    from .idle import Idle
    from .input import Input
    from .link import Link
    from .loop import Loop
    from .nursery import Nursery
    from .output import Output
    from .readers import Readers
    from .records import Records
    from .signals import Signals
    from .terminal import Terminals


class Executions:
    """Starts, stops and ends executions.

    ``on_start`` is set by whoever puts the guest together; it is called when a program starts.
    """

    on_start: Callable[[], None]

    def __init__(
        self,
        loop: Loop,
        link: Link,
        records: Records,
        readers: Readers,
        output: Output,
        stdin: Input,
        terminals: Terminals,
        signals: Signals,
        idle: Idle,
        children: Children,
        nursery: Nursery,
        contexts: Contexts,
        cleaner: Cleaner,
        folders: List[str],
    ) -> None:
        self.loop, self.link, self.records, self.readers = loop, link, records, readers
        self.output, self.stdin, self.terminals = output, stdin, terminals
        self.signals, self.idle = signals, idle
        self.children, self.nursery, self.contexts, self.cleaner = children, nursery, contexts, cleaner
        self.folders = folders  # where programs may write

    def begin(self, execution: Execution) -> None:
        """Starts an execution whose job is complete, or lets it wait for its context."""
        if execution.context_name is None:
            self.take_child(execution)
        else:
            self.contexts.admit(execution)

    def take_child(self, execution: Execution) -> None:
        """Starts an execution in a child that has done nothing yet."""
        self.records.active[execution.name] = execution
        execution.enter("starting")
        self.nursery.take(execution)

    def start(self, execution: Execution, child: Child) -> None:
        """Hands a job with fresh pipes to a child."""
        if execution.state == "queued":
            self.records.active[execution.name] = execution
            execution.enter("starting")
        self.loop.cancel(execution.timer)
        theirs: List[int] = []
        try:
            if execution.terminal is not None:
                self.terminals.open(execution, theirs)
            else:
                self.stdin.open(execution, theirs)
                self.output.open(execution, theirs)
            self.nursery.descriptors.check(max(theirs))
        except OSError as error:  # out of descriptors or terminals: too much at once in this sandbox
            for fd in theirs:
                os.close(fd)
            self.close(execution)
            if child.context is None:
                self.nursery.standby.append(child)
            self.refuse(execution, "no_process", "no pipes for another program in this sandbox: %s" % error.strerror)
            return
        self.output.watch(execution)
        execution.child, execution.pid = child, child.pid
        child.execution = execution
        self.contexts.inhabit(execution, child)
        send_signal(child.pid, signal.SIGCONT)  # a stopped child would look like a program that hangs
        self.begin_in_context(execution, child)
        header = HEADER.pack(len(execution.job), self.flags_of(execution), time.monotonic())
        child.outgoing.append((header + bytes(execution.job), theirs))
        execution.starts += 1
        if execution.job_size > MAX_PAYLOAD_BYTES:
            execution.job = bytearray()  # too large to be kept for another start
        execution.enter("running")
        if execution.timeout_s > 0:
            execution.timer = self.loop.after(execution.timeout_s, lambda: self.stop(execution, "timeout"))
        self.idle.begin(execution)
        self.children.write(child)
        self.on_start()
        self.stdin.begin(execution)
        if execution.begun:
            self.signals.begin(execution)

    def begin_in_context(self, execution: Execution, child: Child) -> None:
        """Settles what the call before has left: its late output, and a signal that may have missed it."""
        if child.context is not None and child.context.late is not None:
            child.context.late.hand_over(lambda channel, data: self.output.keep_late(execution, channel, data))
        execution.begun = not child.was_signalled or child.calls == 0
        child.was_signalled = False

    @staticmethod
    def flags_of(execution: Execution) -> int:
        """What a child must know of an execution before it reads the job."""
        in_context = IN_CONTEXT if execution.context_name is not None else 0
        at_terminal = AT_TERMINAL if execution.terminal is not None else 0
        return in_context | at_terminal | (0 if execution.begun else SAY_BEGUN)

    def on_begun(self, child: Child) -> None:
        """The call of a context can be signalled from now on."""
        execution = child.execution
        if execution is not None and not execution.begun:
            execution.begun = True
            self.signals.begin(execution)

    def start_again(self, execution: Execution) -> None:
        """Gives a job to another child, since the one before was killed before it had read it."""
        self.close(execution)
        self.loop.cancel(execution.timer)
        self.idle.end(execution)
        execution.child = None
        context = execution.context
        if context is not None:
            execution.fresh_context = execution.fresh_context or context.died
        if execution.job and execution.stdin_offset == len(execution.stdin_buffer):
            self.take_child(execution)
        else:
            self.refuse(execution, "no_process", "another program of the sandbox killed the process before it began")

    def refuse(self, execution: Execution, code: str, message: str) -> None:
        """Says that an execution never ran."""
        self.link.send({"type": "refused", "execution": execution.name, "code": code, "message": message})
        self.records.by_name.pop(execution.name, None)
        self.records.active.pop(execution.name, None)
        self.output.release(execution)  # it may have been given late output
        self.contexts.leave(execution)
        self.cleaner.sweep_strays()

    def stop(self, execution: Execution, cause: str) -> None:
        """Ends an execution before its time: a context is asked first, everything else is killed at once.

        The first cause stays. One that has ended already has none.
        """
        if execution.state == "queued":
            execution.cause = cause
            self.contexts.withdraw(execution)
            self.complete(execution)
        elif execution.state == "starting":
            execution.cause = cause
            self.nursery.withdraw(execution)
            self.complete(execution)
            self.cleaner.sweep_strays()
        elif execution.state == "running" and execution.cause is None:
            execution.cause = cause
            if execution.context_name is not None and cause in ("timeout", "idle_timeout", "cancel"):
                self.signals.interrupt(execution)
                self.loop.after(INTERRUPT_GRACE_S, lambda: self.kill_running(execution))
            else:
                self.kill_running(execution)

    def kill_running(self, execution: Execution) -> None:
        """Kills the program itself; its tree, stopped if it is large, follows when wait4 has told of its end."""
        if execution.state == "running":
            kill(execution.pid)
            self.cleaner.halt(execution)

    def on_output_limit(self, execution: Execution) -> None:
        """Kills a program that wrote more than it may. One that was quicker to end gets the same verdict."""
        if execution.state == "running":
            self.stop(execution, "output_limit")
        elif execution.cause is None:
            execution.cause = "output_limit"

    def on_done(self, child: Child, claim: Dict[str, Any]) -> None:
        """A running program says how it went. A call of a context ends with that, anything else with its process."""
        execution = child.execution
        if execution is not None:
            execution.claim = claim
            if child.context is not None:
                child.calls += 1
                self.end_program(execution)

    def on_misuse(self, child: Child) -> None:
        """A context says what no interpreter says. The end of its call could not be known any more, so it is ended."""
        execution = child.execution
        if execution is not None and execution.state == "running":
            self.stop(execution, "claims")
        kill(child.pid)

    def on_unprepared(self, child: Child, why: str) -> None:
        """A child claims that it could not become the sandbox's user; it waits to be killed.

        User code cannot say that: the kernel must say that this process has more rights than any of user code.
        """
        if child.execution is not None and self.cleaner.processes.is_above_user(child.pid):
            child.execution.reason = why
            self.stop(child.execution, "unprepared")
            kill(child.pid)
        else:
            self.children.reject(child)

    def on_exit(self, child: Child, status: int, usage: Any) -> None:
        """The process of a program or context has ended, or was never given anything to do."""
        execution = child.execution
        never_ran = child.unread and execution is not None and execution.state == "running"
        self.contexts.on_exit(child, never_ran)
        if execution is None:
            return
        if execution.cause in ("claims", "hoard") and (never_ran or not killed(status)):
            execution.cause = None  # it was the call before that was to blame, or this one was quicker to end
        if never_ran and execution.cause is None and not execution.signalled and execution.starts < STARTS_MAX:
            self.start_again(execution)
            return
        ours = child.context is not None and (child.context.closed or child.deaf)
        if execution.status is None and not (ours and execution.state == "draining"):  # a call that was over stays so
            execution.status = status
            execution.usage = usage_of(usage)
        if execution.state == "running":
            self.end_program(execution)

    def end_program(self, execution: Execution) -> None:
        """The program has ended: what it left behind dies, then its output is complete."""
        execution.enter("draining")
        self.cleaner.clear_tree(execution, self.complete)

    def complete(self, execution: Execution) -> None:
        """Takes the last output, writes the record of the end and frees what the execution held."""
        self.output.drain(execution)
        lives = self.contexts.lives(execution)
        context = execution.child.context if execution.child is not None else None
        if context is not None:
            context.late = context.late or Late(self.loop)
            self.output.hand_over(execution, context.late, lives)
        self.close(execution)
        self.loop.cancel(execution.timer)
        self.idle.end(execution)
        execution.stdin_buffer.clear()
        execution.job = bytearray()
        execution.enter("ended")
        self.records.active.pop(execution.name, None)
        execution.disks_full = full_file_systems(self.folders)
        execution.finished = finished_frame(execution, lives)
        self.link.send(execution.finished)
        self.readers.note(execution)
        child, execution.child = execution.child, None
        if child is not None:
            child.execution = None
        self.contexts.leave(execution)
        self.records.add(execution)

    def close(self, execution: Execution) -> None:
        """Closes the pipes of a program that does not run after all."""
        self.output.close(execution)
        self.stdin.close(execution)


def killed(status: int) -> bool:
    """Whether a process was killed (SIGKILL)."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
