"""The guest proper, PID 1 of a sandbox: its parts, and which of them calls which."""

from __future__ import annotations

import os
import signal
import socket
import sys

from .awaiting import InputWatch
from .children import Children
from .cleaner import Cleaner
from .context_control import ContextControl
from .contexts import Contexts
from .descriptors import Descriptors
from .dispatch import Dispatch
from .executions import Executions
from .expiry import Expiry
from .fields import seconds
from .hoards import Hoards
from .idle import Idle
from .input import Input
from .intake import Intake
from .libc import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from .limits import OLDEST_VERSION, PROTOCOL_VERSION
from .link import Link
from .loop import READABLE, Loop
from .nursery import Nursery
from .observation import Observer
from .output import Output
from .parking import Parking
from .processes import Processes
from .readers import Readers
from .records import Records
from .samples import Samples
from .usage import Sampler, distinct_file_systems
from .report import holds_frame
from .room import Room
from .signals import Signals
from .standstill import Standstill
from .terminal import Terminals
from .untouched import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, NoReturn

    from .loader import Bundle


class Guest:
    """Puts the parts together and runs them."""

    def __init__(self, mode: str, socket_path: str, settings: Dict[str, Any], bundle: Bundle) -> None:
        owns_namespace = mode == "--container"
        if owns_namespace and os.getpid() != 1:
            raise SystemExit("guest: --container needs to be PID 1; this is PID %d" % os.getpid())
        self.settings, self.bundle = settings, bundle
        self.loop = loop = Loop()
        self.link = link = make_link(loop, socket_path, settings)
        self.processes = Processes(settings["uid"], owns_namespace)
        self.records = records = Records(loop, link)
        self.readers = readers = Readers(link)
        self.output = Output(loop, link, readers, Room(link, records))
        self.stdin = Input(loop, link)
        self.terminals = Terminals(settings["uid"])
        self.signals = Signals(self.processes)
        self.idle = Idle(loop)
        self.children = children = Children(loop)
        self.descriptors = Descriptors()
        self.nursery = Nursery(loop, children, bundle, settings, self.descriptors)
        self.contexts = Contexts()
        self.cleaner = Cleaner(loop, self.processes, children, records)
        self.intake = Intake(link, records, readers)
        self.executions = Executions(
            loop,
            link,
            records,
            readers,
            self.output,
            self.stdin,
            self.terminals,
            self.signals,
            self.idle,
            children,
            self.nursery,
            self.contexts,
            self.cleaner,
            distinct_file_systems([settings["working_dir"]] + list(settings["scratch_dirs"])),
        )
        self.expiry = Expiry(loop)
        self.standstill = Standstill(loop, link, self.expiry, self.nursery)
        self.observer = observer = Observer(loop, children, self.nursery)
        sampler = Sampler(self.processes.listed)
        self.samples = Samples(loop, link, sampler, observer)
        self.input_watch = InputWatch(loop, link, sampler, observer)
        self.context_control = ContextControl(
            loop, link, self.processes, children, self.nursery, self.contexts, self.cleaner, self.executions
        )
        self.parking = Parking(
            loop,
            link,
            self.processes,
            children,
            self.nursery,
            records,
            self.contexts,
            self.executions,
            self.context_control,
            observer,
            Places(settings),
        )
        self.hoards = Hoards(loop, records, self.contexts, self.executions, self.parking)
        self.dispatch = Dispatch(records, link.send)
        self.connect_parts()
        self.fill_dispatch()

    def connect_parts(self) -> None:
        """Gives parts what they call in parts that know them."""
        executions, nursery, children = self.executions, self.nursery, self.children
        self.intake.begin = executions.begin
        executions.on_start = self.hoards.begin
        self.output.on_limit = executions.on_output_limit
        self.readers.on_full = self.output.tell_full
        self.idle.on_idle = lambda execution: executions.stop(execution, "idle_timeout")
        self.records.on_forgotten = self.output.release
        self.contexts.start, self.contexts.take_child = executions.start, executions.take_child
        self.contexts.refuse = executions.refuse
        self.stdin.on_input = self.input_watch.on_input
        nursery.start, nursery.refuse = executions.start, executions.refuse
        children.on_ready, children.on_failed, children.on_silent = (
            nursery.on_ready,
            nursery.on_failed,
            nursery.on_silent,
        )
        children.on_begun = executions.on_begun
        children.on_done, children.on_exit = executions.on_done, executions.on_exit
        children.on_misuse, children.on_unprepared = executions.on_misuse, executions.on_unprepared
        self.link.on_connected, self.link.on_lost = self.greet, self.on_lost
        self.link.on_frame = self.dispatch.on_frame

    def fill_dispatch(self) -> None:
        """Says who answers which frame of the daemon."""
        link, readers, output, stdin = self.link, self.readers, self.output, self.stdin
        intake, executions, control = self.intake, self.executions, self.context_control
        self.dispatch.for_sandbox = {
            "run": intake.on_run,
            "park": self.parking.on_park,
            "expire": lambda header, _: self.expiry.expire_in(seconds(header, "in_s")),
            "pause": self.standstill.on_pause,
            "resume": self.standstill.on_resume,
            "open_context": control.on_open,
            "close_context": control.on_close,
            "reset_context": control.on_reset,
            "list_contexts": control.on_list,
            "ping": lambda header, _: link.send({"type": "pong", "number": header["number"]}),
        }
        self.dispatch.for_execution = {
            "job": lambda execution, _, payload: intake.on_job(execution, payload),
            "subscribe": lambda execution, header, _: readers.on_subscribe(execution, header),
            "credit": lambda execution, header, _: readers.on_credit(execution, header),
            "unsubscribe": lambda execution, header, _: readers.on_unsubscribe(execution, header),
            "acknowledge": lambda execution, header, _: output.on_acknowledge(execution, header),
            "may_go": lambda execution, *_: output.on_may_go(execution),
            "stdin": lambda execution, header, payload: stdin.on_stdin(execution, int(header["offset"]), payload),
            "end_of_input": lambda execution, *_: stdin.on_end(execution),
            "signal": lambda execution, header, _: self.signals.on_signal(execution, header),
            "resize": lambda execution, header, _: self.terminals.on_resize(execution, header),
            "sample": self.samples.on_sample,
            "watch_input": self.input_watch.on_watch_input,
            "cancel": lambda execution, *_: executions.stop(execution, "cancel"),
        }

    def serve(self) -> NoReturn:
        """Runs until the sandbox ends. Never returns."""
        os.set_inheritable(self.bundle.fd, False)
        self.descriptors.raise_limit()
        wake, wakeup = socket.socketpair()
        wake.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
        self.loop.watch(wake.fileno(), READABLE, lambda _: self.on_wakeup(wake))
        if not self.processes.owns_namespace:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_DUMPABLE, 0)  # nobody may look into PID 1
        self.nursery.start_template()
        self.expiry.expire_in(float(self.settings["expires_in_s"]))
        self.link.connect()
        self.loop.run(self.after_each_round)

    def after_each_round(self) -> None:
        """Sends what the events of a round have left to be sent."""
        self.readers.serve()
        self.link.flush()

    def on_wakeup(self, wake: socket.socket) -> None:
        """A signal came: some process has ended."""
        try:
            while wake.recv(4096):
                pass
        except BlockingIOError:
            pass
        self.children.reap()

    def on_lost(self) -> None:
        """The connection to the daemon is gone."""
        self.standstill.end()
        self.intake.on_lost()

    def greet(self) -> None:
        """Tells a daemon that has just been reached who we are and what we hold."""
        send = self.link.send
        hello = {"type": "hello", "version": PROTOCOL_VERSION, "oldest": OLDEST_VERSION}
        hello.update(sandbox=self.settings["sandbox_id"], python="%d.%d.%d" % sys.version_info[:3])
        hello["met"] = self.link.has_met
        send(hello)
        for execution in list(self.records.by_name.values()):
            send(holds_frame(execution))
            if execution.finished is not None:
                send(execution.finished)
            elif execution.told_full:
                self.output.tell_full(execution)
        send({"type": "ready"})


def make_link(loop: Loop, socket_path: str, settings: Dict[str, Any]) -> Link:
    """The way to the daemon: its socket, or (``-``) the standard input and output of this process."""
    absence_s = float(settings["daemon_absence_s"])
    if socket_path != "-":
        return Link(loop, socket_path, absence_s, float(settings.get("connect_patience_s", 0)))
    from .attached import AttachedLink  # memory counts in every sandbox

    return AttachedLink(loop, absence_s)
