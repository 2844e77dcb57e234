"""Python source as a job: a program that ends, or the calls of a context."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from .claims import encode_claim
from .handover import SAY_BEGUN, install, receive_job
from .interpreter import Interpreter
from .limits import CLAIMED_TRANSFER_BYTES, RESERVED_FILES
from .masks import release_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, NoReturn

    from .handover import Handed


def rehearse() -> None:
    """Runs no program as if it were one, while there is time for it.

    What a process does first takes several times as long as later, above all since each page of memory that it writes
    to must first be copied from the template's. Nothing of the rehearsal stays but such pages.
    """
    path, on_interrupt = sys.path[:], signal.getsignal(signal.SIGINT)
    job = json.loads('{"env": {"PATH": "/bin", "HOME": "/"}, "code": ""}')
    os.environ.update(job["env"])
    interpreter = Interpreter("/")
    interpreter.call(job["code"], lambda: None)
    interpreter.namespace.clear()
    os.environ.clear()
    interpreter.linecache.cache.clear()
    sys.path[:] = path
    signal.signal(signal.SIGINT, on_interrupt)


def serve_context(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Runs call after call in one interpreter."""
    own_pid = os.getpid()
    own_socket = os.fstat(control.fileno()).st_ino
    interpreter = Interpreter(os.getcwd())
    if job.get("open"):  # its first call comes later
        control.sendall(encode_claim({"opened": True}))
        handed = receive_job(control)
        install(handed.fds)
        job = json.loads(handed.text)
    os.environ.clear()
    os.environ.update(job["env"])
    meet_signals: Callable[[], None] = release_signals
    while True:
        interpreter.spare_files(RESERVED_FILES)
        interpreter.restrict(job.get("imports"))
        outcome = interpreter.call(job["code"], meet_signals)
        if os.getpid() != own_pid:  # a fork of user code came back to us; it has no business here
            os._exit(outcome["exit_code"])
        interpreter.spare_files(0)
        try:
            if os.fstat(control.fileno()).st_ino != own_socket:
                os._exit(outcome["exit_code"])
            control.setblocking(True)  # user code may have changed that
            control.sendall(encode_claim(outcome))
        except OSError:  # user code closed or replaced the socket: the exit status has to speak
            os._exit(outcome["exit_code"])
        handed = receive_job(control)  # until then the streams stay: the guest reads what threads write
        install(handed.fds)
        job = json.loads(handed.text)
        meet_signals = signals_of_call(interpreter, control, handed)
        forget_tracker()
        look_again()


def signals_of_call(interpreter: Interpreter, control: socket.socket, handed: Handed) -> Callable[[], None]:
    """What a call does as its first step, for signals that are meant for it or for the call before."""

    def meet_signals() -> None:
        if handed.flags & SAY_BEGUN:  # the call before was signalled: what came up to now was not meant for this one
            interpreter.interrupted_at = 0.0
            control.sendall(encode_claim({"begun": interpreter.calls}))
        elif interpreter.interrupted_at >= handed.sent_at:
            raise KeyboardInterrupt

    return meet_signals


def forget_tracker() -> None:
    """Lets multiprocessing start a new tracker of its shared objects: the last one ended with the call before.

    Otherwise it warns that it has died. What user code made of the module is its own affair.
    """
    tracker: Any = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    if getattr(tracker, "_pid", None) is None:
        return
    try:
        os.close(tracker._fd)
        os.waitpid(tracker._pid, os.WNOHANG)
    except (AttributeError, OSError, TypeError):
        pass
    try:
        tracker._fd = tracker._pid = None
    except AttributeError:
        pass


def look_again() -> None:
    """Lets imports look again at places that were not there before, such as the folder of the user's own packages."""
    for place in sys.path:
        if sys.path_importer_cache.get(place, True) is None:
            del sys.path_importer_cache[place]


def run_python(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Runs source once, in this process, and ends as an interpreter ends: with atexit and its threads joined."""
    import atexit
    import gc
    import threading

    os.environ.clear()
    os.environ.update(job["env"])
    interpreter = Interpreter(os.getcwd())
    own_pid = os.getpid()
    interpreter.restrict(job.get("imports"))
    outcome = interpreter.call(job["code"], release_signals)
    bytes_transferred = outcome["usage"]["io_read_bytes"] + outcome["usage"]["io_write_bytes"]
    telling = outcome["exception"] is not None or bytes_transferred >= CLAIMED_TRANSFER_BYTES
    if telling and os.getpid() == own_pid:  # a fork of user code speaks for itself only
        try:
            control.sendall(encode_claim(outcome))
        except OSError:
            pass
    # What the interpreter does at its end, without the dismantling of every module, which costs 10 ms: threads are
    # joined, atexit runs, objects of the program go away, and with them the buffers of files left open.
    last_steps: List[Callable[[], Any]] = [
        threading._shutdown,  # type: ignore[attr-defined]  # private, and so in no stub
        atexit._run_exitfuncs,
        interpreter.namespace.clear,
        gc.collect,
    ]
    for step in last_steps:
        try:
            step()
        except BaseException:  # user code runs in all of these
            pass
    interpreter.flush()
    os._exit(outcome["exit_code"])
