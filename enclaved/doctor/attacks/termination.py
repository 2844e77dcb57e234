"""Refusing to end. Every program also ends by itself within half a minute, whatever becomes of the sandbox."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import Attack, Category, Evidence, Judge, Program
from enclaved.doctor.attacks.judges import all_of, ends, finds, nothing_left, still_works

_SPAWNS: Final = """
import signal
def again(left):
    signal.alarm(25)
    while left:
        child = os.fork()
        if child:
            time.sleep(0.02)
            os._exit(0)
        os.setsid()
        left -= 1
    while True:
        signal.pause()
for _ in range(6):
    if not os.fork():
        again(300)
"""
"""Six processes that pass on their life to a child all the time, 300 times each."""
_SPINS: Final = """
import signal
signal.alarm(25)
for _ in range(250):
    try:
        if not os.fork():
            signal.alarm(25)
            os.setsid()
            break
    except OSError:
        break
while True:
    pass
"""
"""As many processes as it gets, of a session each; all of them want the processor, and so does who has to kill them."""
_IGNORES: Final = """
import signal
signal.alarm(0)
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP})
tell("ready", True)
end = time.monotonic() + 25
while time.monotonic() < end:
    pass
"""


def _attack(
    name: str, sentence: str, source: str, judge: Judge, *, timeout_s: float = 20, cancel: bool = False
) -> Attack:
    return Attack(
        f"termination.{name}",
        Category.TERMINATION,
        sentence,
        all_of(judge, nothing_left()),
        Program(source, timeout_s=timeout_s, cancel_when_ready=cancel),
        looks_for_processes=True,
    )


async def _outlive_ttl(act: Act) -> Evidence:
    sandbox_id = await act.sandbox(ttl_s=2.0)
    run = await act.run(Program(_IGNORES, timeout_s=25), sandbox_id)
    return act.evidence(run, gone=await act.is_gone(sandbox_id))


async def _outlive_delete(act: Act) -> Evidence:
    sandbox_id = await act.sandbox()
    started = await act.start(Program(_SPAWNS + "tell('ready', True)\nagain(300)\n", timeout_s=25), sandbox_id)
    await act.remove(sandbox_id)
    return act.evidence(await started, gone=await act.is_gone(sandbox_id))


async def _outlive_stop(act: Act) -> Evidence:
    sandbox_id = await act.sandbox()
    started = await act.start(Program(_IGNORES, timeout_s=25), sandbox_id)
    await act.stop(sandbox_id)
    return act.evidence(await started, gone=not await act.has_container(sandbox_id))


ATTACKS: Final = (
    _attack("ignores-signals", "Ignores and blocks every signal.", _IGNORES, ends("TIMEOUT"), timeout_s=1),
    _attack(
        "one-long-call",
        "Holds the interpreter in one long call of C code.",
        "import re\nre.match('(a+)+$', 'a' * 34 + 'b')\ntell('done', True)\n",
        ends("TIMEOUT"),
        timeout_s=1,
    ),
    _attack(
        "detached-child",
        "Leaves a child behind that is detached twice.",
        """
import signal
if not os.fork():
    os.setsid()
    if not os.fork():
        signal.alarm(25)
        for fd in range(3):
            os.close(fd)
        while True:
            signal.pause()
    os._exit(0)
tell("left", True)
""",
        ends("EXITED", exit_code=0),
    ),
    _attack(
        "respawning",
        "Is never the same process for long: each forks the next and ends.",
        _SPAWNS + "os._exit(0)\n",
        ends("EXITED", exit_code=0),
    ),
    _attack(
        "respawning-past-a-timeout",
        "Forks the next process all the time, until a timeout.",
        _SPAWNS + "time.sleep(25)\n",
        ends("TIMEOUT"),
        timeout_s=1,
    ),
    _attack(
        "spinning-bomb",
        "Fills the sandbox with processes that never rest, until a timeout.",
        _SPINS,
        all_of(ends("TIMEOUT"), still_works()),
        timeout_s=3,
    ),
    _attack(
        "stops-itself",
        "Stops itself, so that it neither runs nor ends.",
        "import signal\nif not os.fork():\n    signal.alarm(25)\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "signal.alarm(25)\nos.kill(os.getpid(), signal.SIGSTOP)\n",
        ends("TIMEOUT"),
        timeout_s=1,
    ),
    _attack(
        "holds-the-pipe",
        "Leaves a child that keeps its output open, so that the end of it never comes.",
        "import signal\nif not os.fork():\n    signal.alarm(25)\n"
        "    while True:\n        signal.pause()\ntell('left', True)\n",
        ends("EXITED", exit_code=0),
    ),
    _attack("cancelled", "Ignores every signal when its caller cancels it.", _IGNORES, ends("CANCELLED"), cancel=True),
    _attack(
        "hides-in-threads",
        "Hides in threads, and in a child with a process group of its own.",
        """
import threading
for _ in range(8):
    threading.Thread(target=time.sleep, args=(25,)).start()
if not os.fork():
    os.setpgid(0, 0)
    time.sleep(25)
time.sleep(25)
""",
        ends("TIMEOUT"),
        timeout_s=1,
    ),
    Attack(
        "termination.time-to-live",
        Category.TERMINATION,
        "Goes on past the time to live of its sandbox.",
        all_of(finds("gone", bool, "the sandbox is gone"), ends("SANDBOX_LOST", "CANCELLED", "TIMEOUT")),
        act=_outlive_ttl,
    ),
    Attack(
        "termination.deleted-sandbox",
        Category.TERMINATION,
        "Forks the next process all the time while its sandbox is deleted.",
        all_of(finds("gone", bool, "the sandbox is gone"), ends("SANDBOX_LOST", "CANCELLED")),
        act=_outlive_delete,
    ),
    Attack(
        "termination.stopped-sandbox",
        Category.TERMINATION,
        "Ignores every signal while its sandbox is stopped.",
        all_of(finds("gone", bool, "its container is gone"), ends("SANDBOX_LOST", "CANCELLED")),
        act=_outlive_stop,
    ),
)
