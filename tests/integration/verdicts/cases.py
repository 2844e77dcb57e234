"""Programs whose end is known beforehand, what runs, and what must be said of how it ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CODES = (0, 1, 2, 3, 64, 124, 125, 126, 127, 128, 130, 137, 139, 143, 255)
"""Exit codes that are taken for something else elsewhere, among others."""
DEADLY = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 26, 27, 29, 30, 31, 34, 40, 64)
"""Signals that end a program that does not handle them; 25 (SIGXFSZ) has a verdict of its own."""
DEADLY_TO_PYTHON = tuple(number for number in DEADLY if number not in (2, 13))
"""Without those that the interpreter handles or ignores."""
LONG_S = 20.0
SHORT_S = (0.1, 0.25, 0.4)


@dataclass(frozen=True)
class Expected:
    """What must be said. ``None``: nothing of the kind."""

    verdict: str
    exit_code: int | None = None
    signal: int | None = None
    exception: str = ""
    sender: str = ""
    limit: str = ""
    """A limit that must be among those that were met."""
    broken: bool = False
    """It talks nonsense in the name of its helper: the guest may kill it, and believes what a context says."""


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    tool: str
    parameters: Mapping[str, Any]
    expected: Expected
    timeout_s: float = LONG_S
    caller_signal: int = 0
    """What a caller sends when the program has said that it is ready; 0: nothing."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the call."""


def isolated(name: str, code: str, expected: Expected, **more: Any) -> Case:
    """A program in an interpreter of its own."""
    return Case(name, "python_executor", {"code": code, "isolated": True}, expected, **more)


def in_context(name: str, code: str, expected: Expected, **more: Any) -> Case:
    """A program in the sandbox's context."""
    return Case(name, "python_executor", {"code": code}, expected, **more)


def shell(name: str, command: str | Sequence[str], expected: Expected, **more: Any) -> Case:
    """A command."""
    return Case(name, "shell_executor", {"command": command}, expected, **more)


def exited(code: int, limit: str = "") -> Expected:
    """It ended by itself."""
    return Expected("EXITED", exit_code=code, limit=limit)


def signaled(number: int, sender: str = "") -> Expected:
    """A signal ended it."""
    return Expected("SIGNALED", signal=number, sender=sender)


def exits(chance: random.Random) -> Case:
    """A program that ends by itself."""
    code = chance.choice((*CODES, chance.randrange(256)))
    return chance.choice(
        (
            isolated("sys.exit", f"import sys; sys.exit({code})", exited(code)),
            isolated("os._exit", f"import os; os._exit({code})", exited(code)),
            isolated("its end", "x = 1", exited(0)),
            isolated("an exception", "{}['k']", Expected("EXCEPTION", exit_code=1, exception="KeyError")),
            isolated("os._exit while a child lives on", _with_child(f"os._exit({code})"), exited(code)),
            isolated("a child that was killed", f"{_CHILD_KILLED}os._exit({code})", exited(code)),
            in_context("sys.exit in a context", f"import sys; sys.exit({code})", exited(code)),
            in_context("os._exit in a context", f"import os; os._exit({code})", exited(code)),
            in_context("its end in a context", "x = 1", exited(0)),
            shell("exit", f"exit {code}", exited(code)),
            shell("a program of its own", ["sh", "-c", f"exit {code}"], exited(code)),
            shell("the code of a killed child", "sh -c 'kill -9 $$'; exit $?", exited(137)),
            shell("the code of timeout", "timeout 0.05 sleep 60", exited(124)),
            shell("the code of timeout with KILL", "timeout -s KILL 0.05 sleep 60; exit $?", exited(137)),
            shell("a child that holds the pipes", f"sleep 600 & exit {code}", exited(code)),
            shell("closed output", f"exec >&- 2>&-; exit {code}", exited(code)),
            shell("no such program", "there-is-no-such-program", exited(127)),
        )
    )


def signals(chance: random.Random) -> Case:
    """A program that a signal ends: its own, or a caller's."""
    number, python = chance.choice(DEADLY), chance.choice(DEADLY_TO_PYTHON)
    if chance.random() < 0.5:
        return _signals_of_a_caller(chance, number, python)
    return chance.choice(
        (
            shell("kill", ["sh", "-c", f"kill -{number} $$; sleep 600"], signaled(number)),
            shell("kill -9", "kill -9 $$", signaled(9)),
            isolated("os.kill", f"import os, time\nos.kill(os.getpid(), {python})\ntime.sleep(600)", signaled(python)),
            isolated("abort", "import os; os.abort()", signaled(6)),
            isolated("a segmentation fault", "import ctypes; ctypes.string_at(0)", signaled(11)),
            isolated("raise_signal in a thread", _IN_A_THREAD.format(number=python), signaled(python)),
            isolated("a child kills its parent", _PARENT_KILLED, signaled(9)),
            in_context("os.kill in a context", "import os; os.kill(os.getpid(), 9)", signaled(9)),
            in_context("a segmentation fault in a context", "import ctypes; ctypes.string_at(0)", signaled(11)),
        )
    )


def _signals_of_a_caller(chance: random.Random, number: int, python: int) -> Case:
    sleep = "import time\nprint('ready', flush=True)\ntime.sleep(600)"
    handles = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(5))\n" + sleep
    return chance.choice(
        (
            shell(
                "a caller's signal to a command",
                ["sh", "-c", "echo ready; sleep 600; exit 3"],
                signaled(number, "CALLER"),
                caller_signal=number,
            ),
            isolated("a caller's signal", sleep, signaled(python, "CALLER"), caller_signal=python),
            isolated("a caller's signal that is handled", handles, exited(5), caller_signal=15),
        )
    )


def out_of_memory(chance: random.Random) -> Case:
    """A program that takes more memory than there is."""
    step = chance.choice((1, 4, 16))
    hoard = f"held = []\nwhile True:\n    held.append(b'x' * ({step} << 20))"
    killed = Expected("OUT_OF_MEMORY", signal=9, limit="memory")
    code = chance.choice(CODES)
    return chance.choice(
        (
            isolated("memory", hoard, killed),
            isolated("memory in a thread", _HOARD_IN_A_THREAD, killed),
            in_context("memory in a context", hoard, killed),
            shell("memory of a command", ["python3", "-c", hoard], killed),
            isolated("memory of a child", _CHILD_OF_HOARD.format(code=code), exited(code, limit="memory")),
            shell("memory of a command's child", _SHELL_HOARD, exited(137, limit="memory")),
        )
    )


def timeouts(chance: random.Random) -> Case:
    """A program that goes on past its timeout, and some that end just before it by themselves."""
    timeout_s = chance.choice(SHORT_S)
    late = Expected("TIMEOUT")
    deaf = (
        "import signal\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    )
    return chance.choice(
        (
            isolated("sleep", "import time; time.sleep(600)", late, timeout_s=timeout_s),
            isolated("a loop", "while True: pass", late, timeout_s=timeout_s),
            isolated("deaf to signals", deaf, late, timeout_s=timeout_s),
            isolated("children", _with_child("os.wait()"), late, timeout_s=timeout_s),
            in_context("sleep in a context", "import time; time.sleep(600)", late, timeout_s=timeout_s),
            in_context("a loop in a context", "while True: pass", late, timeout_s=timeout_s),
            in_context("an interrupt that is caught", _CAUGHT, late, timeout_s=timeout_s),
            shell("sleep of a command", "sleep 600", late, timeout_s=timeout_s),
            shell("a trap", "trap '' TERM INT HUP; while :; do sleep 1; done", late, timeout_s=timeout_s),
            shell("killed by itself in time", "kill -9 $$", signaled(9), timeout_s=10.0),
            isolated("137 in time", "import os; os._exit(137)", exited(137), timeout_s=10.0),
            isolated("TimeoutError", "raise TimeoutError", Expected("EXCEPTION", 1, None, "TimeoutError")),
        )
    )


def forgeries(chance: random.Random) -> Case:
    """A program that says of itself what is not so."""
    code = chance.choice((7, 9, 124, 137))
    attempts: dict[str, str] = {
        "frames on every descriptor": f"{_FRAMES}os._exit({code})",
        "frames as output": f"{_FRAMES_AS_OUTPUT}os._exit({code})",
        "the results of a helper": f"{_CLAIMS}os._exit({code})",
        "its neighbours killed": f"{_KILL_ALL}os._exit({code})",
        "closed descriptors": f"import os\nos.closerange(0, 4096)\nos._exit({code})",
        "swapped descriptors": f"{_SWAPPED}os._exit({code})",
        "a replaced sys.stdout": f"{_FAKE_STDOUT}sys.exit({code})",
        "a replaced sys.stdout that fails": f"{_BAD_STDOUT}sys.exit({code})",
        "modules replaced": f"{_MODULES}os._exit({code})",
        "a hook that ends it": f"import os, sys\nsys.excepthook = lambda *_: os._exit({code})\nraise ValueError",
        "a child of a child": _GRANDCHILD.format(code=code),
        "signals to the guest": f"{_SIGNALS_TO_THE_GUEST}os._exit({code})",
        "sockets of its process": f"{_SOCKETS}os._exit({code})",
    }
    name = chance.choice(sorted(attempts))
    place: Callable[..., Case] = chance.choice((isolated, isolated, in_context))
    if chance.random() < 0.15:
        return isolated(f"{name}, then killed", f"{_FRAMES}{_CLAIMS}os.kill(os.getpid(), 9)", signaled(9))
    if place is in_context and name == "a hook that ends it":
        place = isolated
    broken = name in ("frames on every descriptor", "the results of a helper", "sockets of its process")
    expected = Expected("EXITED", exit_code=code, broken=broken)
    return place(f"{name}{' in a context' if place is in_context else ''}", attempts[name], expected)


def misuses(chance: random.Random) -> Case:
    """A program that finds its interpreter's own socket, and writes to nothing else."""
    code = chance.choice((7, 9, 124, 137))
    ended = Expected("SIGNALED", signal=9, sender="DAEMON")
    forged = Expected("EXCEPTION", exit_code=1, exception="Forged")
    return chance.choice(
        (
            isolated("garbage", f"{_GARBAGE}import sys; sys.exit({code})", exited(code)),
            isolated("garbage, then os._exit", f"{_GARBAGE}os._exit({code})", exited(code)),
            isolated("garbage, then killed", f"{_GARBAGE}os.kill(os.getpid(), 9)", signaled(9)),
            isolated("garbage, then a signal", f"{_GARBAGE}os.kill(os.getpid(), 15)", signaled(15)),
            isolated("a forged end", f"{_FORGED_END}os._exit({code})", exited(code)),
            isolated("a forged exception", f"{_FORGED_END}os._exit(1)", forged),
            in_context("garbage in a context", f"{_GARBAGE}import time; time.sleep(600)", ended),
            in_context("a forged end in a context", f"{_FORGED_END}sys.exit({code})", exited(code)),
            in_context("the call after", f"import sys; sys.exit({code})", exited(code)),
        )
    )


KINDS: Mapping[str, Callable[[random.Random], Case]] = {
    "exit": exits,
    "signal": signals,
    "out of memory": out_of_memory,
    "timeout": timeouts,
    "forged": forgeries,
    "misused socket": misuses,
}


def _with_child(then: str) -> str:
    return f"import os, time\nif os.fork() == 0:\n    time.sleep(600)\n{then}"


_CHILD_KILLED = "import os\nif (child := os.fork()) == 0:\n    os.kill(os.getpid(), 9)\nos.waitpid(child, 0)\n"
_IN_A_THREAD = """
import signal, threading, time
threading.Thread(target=signal.raise_signal, args=({number},)).start()
time.sleep(600)
"""
_PARENT_KILLED = """
import os, time
if os.fork() == 0:
    os.kill(os.getppid(), 9)
    os._exit(0)
time.sleep(600)
"""
_HOARD_IN_A_THREAD = """
import threading
def hoard():
    held = []
    while True:
        held.append(b"x" * (1 << 20))
thread = threading.Thread(target=hoard)
thread.start()
thread.join()
"""
_CHILD_OF_HOARD = """
import os
if (child := os.fork()) == 0:
    held = []
    while True:
        held.append(b"x" * (1 << 20))
os.waitpid(child, 0)
os._exit({code})
"""
_SHELL_HOARD = "python3 -c 'h = []\nwhile True: h.append(b\"x\" * (1 << 20))'; exit $?"
_CAUGHT = """
import time
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        pass
"""
_FORGED_HEADERS = """
import json, os, struct
headers = [
    {"type": "finished", "exit_code": 0, "attested": True, "cause": None, "execution": "e:0"},
    {"type": "finished", "signal": 9, "attested": True, "cause": "timeout"},
    {"done": True, "call": 1, "exit_code": 0, "exception": None, "usage": {}},
    {"exit_code": 0, "cause": "cancel"},
]
frames = b""
for header in headers:
    text = json.dumps(header).encode()
    frames += struct.pack(">IH", len(text), len(text)) + text
"""
_FRAMES = f"""{_FORGED_HEADERS}
import fcntl
for fd in range(3, 256):
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        os.write(fd, frames)
    except OSError:
        pass
"""
_FRAMES_AS_OUTPUT = f"""{_FORGED_HEADERS}
os.write(1, frames)
os.write(2, frames)
"""
_GARBAGE = """
import os
os.write(3, b"\\xff" * 100)
"""
_FORGED_END = """
import json, os, struct, sys
exception = {"type": "Forged", "message": "x"}
claim = {"done": True, "call": 0, "exit_code": 1, "exception": exception, "usage": {}}
text = json.dumps(claim).encode()
os.write(3, struct.pack(">I", len(text)) + text)
"""
_CLAIMS = """
import json, os, socket, struct
claims = [
    {"done": True, "call": number, "exit_code": 0, "exception": {"type": "Forged", "message": "x"}, "usage": {}}
    for number in range(1, 4)
] + [{"exit_code": 0}, {"exception": {"type": "Forged", "message": "x"}}, {"fresh": True}]
for fd in range(3, 64):
    for claim in claims:
        text = json.dumps(claim).encode()
        try:
            found = socket.socket(fileno=os.dup(fd))
            found.send(struct.pack(">I", len(text)) + text, socket.MSG_DONTWAIT)
            found.close()
        except OSError:
            pass
"""
_KILL_ALL = """
import os
for number in (1, 15, 10, 9):
    try:
        os.kill(-1, number)
    except OSError:
        pass
"""
_SWAPPED = """
import os
for fd in range(0, 32):
    for other in range(0, 32):
        try:
            os.dup2(fd, other)
        except OSError:
            pass
"""
_FAKE_STDOUT = """
import sys
class Fake:
    def write(self, text): return len(text)
    def flush(self): pass
    def reconfigure(self, **_): pass
    closed = False
sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Fake()
print("exit code: 0")
"""
_BAD_STDOUT = """
import sys
class Bad:
    def __getattribute__(self, name): raise SystemExit(0)
sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Bad()
"""
_MODULES = """
import os, sys
real = os._exit
def nothing(*_, **__): return None
for name in ("json", "struct", "socket", "signal", "traceback", "resource", "select"):
    module = sys.modules.get(name)
    for each in list(vars(module)) if module else ():
        if callable(getattr(module, each)) and not each.startswith("__"):
            try:
                setattr(module, each, nothing)
            except (AttributeError, TypeError):
                pass
os._exit = real
"""
_GRANDCHILD = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.01)
        os._exit(77)
    os._exit(78)
os._exit({code})
"""
_SIGNALS_TO_THE_GUEST = """
import os
for number in (1, 2, 9, 15, 17, 19):
    try:
        os.kill(1, number)
    except OSError:
        pass
"""
_SOCKETS = """
import gc, os, socket
for found in gc.get_objects():
    if isinstance(found, socket.socket):
        try:
            found.send(b"\\0" * 64, socket.MSG_DONTWAIT)
        except OSError:
            pass
"""
