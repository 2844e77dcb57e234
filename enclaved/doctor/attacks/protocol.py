"""Attacks on PID 1, on its channel to the daemon, and on the interpreter that runs user code."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import Attack, Category, Evidence, Judge, Program
from enclaved.doctor.attacks.judges import NO_SUCH, all_of, ends, finds, refuses, still_works

_SIGNALS: Final = ("SIGKILL", "SIGTERM", "SIGSTOP", "SIGSEGV", "SIGINT", "SIGHUP", "SIGCONT", "SIGUSR1")


def _attack(name: str, sentence: str, source: str, judge: Judge, *, isolated: bool = True) -> Attack:
    return Attack(
        f"protocol.{name}",
        Category.PROTOCOL,
        sentence,
        all_of(judge, still_works()),
        Program(source, isolated=isolated),
    )


async def _poison(act: Act) -> Evidence:
    """Breaks the persistent interpreter, and looks at a fresh one."""
    await act.run(Program(_BREAK, isolated=False))
    seen = await act.run(Program("tell('sum', sum([1, 2]))\ntell('json', json.dumps({}))\n"))
    return act.evidence(seen, fresh=act.told(seen))


_BREAK: Final = """
import builtins, os, threading
builtins.print = builtins.sum = builtins.len = lambda *a, **k: 0
json.dumps = os.write = os._exit = sys.exit = lambda *a, **k: None
sys.modules.clear()
"""

ATTACKS: Final = (
    _attack(
        "signals-to-the-guest",
        "Sends signals to PID 1.",
        f"""
import signal
for name in {_SIGNALS!r}:
    attempt(name, os.kill, 1, getattr(signal, name))
""",
        refuses(*_SIGNALS),
    ),
    _attack(
        "traces-the-guest",
        "Traces PID 1, and reads its memory, environment and descriptors.",
        """
call("ptrace", 16, 1, 0, 0)
call("process_vm_readv", 1, 0, 0, 0, 0, 0)
for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/auxv", "/proc/1/syscall"):
    attempt(path, lambda: open(path, "rb").read(1))
attempt("/proc/1/fd", os.listdir, "/proc/1/fd")
""",
        refuses(
            *("ptrace", "process_vm_readv", "/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/auxv"),
            *("/proc/1/syscall", "/proc/1/fd"),
            by=NO_SUCH,
        ),
    ),
    _attack(
        "forged-frames",
        "Prints what looks like the daemon's frames and verdicts, and exits with 5.",
        """
import struct
for body in ({"type": "exit", "code": 0}, {"t": "ended", "verdict": "EXITED", "exit_code": 0}, {"event": "finished"}):
    text = json.dumps(body).encode()
    for frame in (text + b"\\n", struct.pack(">I", len(text)) + text, struct.pack("<I", len(text)) + text):
        os.write(1, frame)
        os.write(2, frame)
os.write(1, struct.pack(">I", 0xFFFFFFF0))
os._exit(5)
""",
        ends("EXITED", exit_code=5, attested=True),
    ),
    _attack(
        "descriptors",
        "Writes forged frames to every descriptor that it holds, then closes all of them.",
        """
junk = b'{"type": "exit", "code": 0}\\n' * 8
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.write(fd, junk)
    except OSError:
        pass
os.closerange(3, 256)
os._exit(6)
""",
        ends("EXITED", exit_code=6, attested=True),
    ),
    _attack(
        "signals-to-all",
        "Kills every process that it may signal.",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.kill(-1, signal.SIGKILL)\nos._exit(8)\n",
        ends("EXITED", "SIGNALED"),
    ),
    _attack(
        "stops-all",
        "Stops every process that it may signal, the ones that wait for work among them.",
        "import signal\nos.kill(-1, signal.SIGSTOP)\nos._exit(8)\n",
        ends("EXITED", "TIMEOUT", "SIGNALED"),
    ),
    _attack(
        "breaks-the-runtime",
        "Replaces what the interpreter is made of, and ends by an exception.",
        """
import builtins, threading
sys.stdout = sys.stderr = None
sys.excepthook = sys.displayhook = None
builtins.__import__ = builtins.print = builtins.open = None
threading._shutdown = None
sys.modules["traceback"] = sys.modules["signal"] = None
raise RuntimeError("broken")
""",
        ends("EXCEPTION", "EXITED", "SIGNALED"),
    ),
    _attack(
        "deep-recursion",
        "Recurses until its stack is full.",
        "sys.setrecursionlimit(10**9)\nnested = []\nfor _ in range(300000):\n    nested = [nested]\nrepr(nested)\n",
        ends("EXCEPTION", "SIGNALED", "OUT_OF_MEMORY", "TIMEOUT"),
    ),
    _attack(
        "source-that-explodes",
        "Is source text that explodes the compiler.",
        "eval('(' * 90 + '1' + ')' * 90)\ntry:\n    compile('-' * 200000 + '1', 'x', 'eval')\n"
        "except (MemoryError, RecursionError, SyntaxError):\n    pass\nos._exit(4)\n",
        ends("EXITED", "SIGNALED", "OUT_OF_MEMORY", "TIMEOUT"),
    ),
    _attack(
        "sockets-of-the-guest",
        "Connects to the socket on which the guest talks to the daemon.",
        """
reach("connect", socket.AF_UNIX, "/run/enclave/socket/agent.sock")
attempt("list", os.listdir, "/run/enclave/socket")
attempt("write", lambda: open("/run/enclave/socket/x", "w"))
""",
        refuses("connect", "list", "write", by=NO_SUCH | {"ECONNREFUSED"}),
    ),
    Attack(
        "protocol.poisoned-interpreter",
        Category.PROTOCOL,
        "Poisons the interpreter that is kept, to forge results of a fresh one.",
        all_of(
            finds("fresh", lambda value: value == {"sum": 3, "json": "{}"}, "a fresh interpreter is untouched"),
            ends("EXITED", exit_code=0),
        ),
        act=_poison,
    ),
)
