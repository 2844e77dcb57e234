"""Signals to executions: who gets them, when, and what is said of them."""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import SIGNALS_KEPT
from tests.service.guest.wire import Run, WireGuest, wire_guest


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


def signal(guest: WireGuest, run: Run, number: int, *, leader_only: bool = False) -> None:
    guest.send("signal", execution=run.name, number=number, leader_only=leader_only)


FAMILY = (
    "import os, signal, sys, time\n"
    "def say(number, frame):\n"
    "    os.write(1, f'{who} {number}\\n'.encode())\n"
    "    os._exit(number)\n"
    "for number in (10, 12): signal.signal(number, say)\n"
    "who = 'leader'\n"
    "if os.fork() == 0:\n"
    "    who = 'child'\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        who = 'grandchild'\n"
    "        print('ready', flush=True)\n"
    "    time.sleep(1000)\n"
    "while True:\n"
    "    try: os.wait()\n"
    "    except ChildProcessError: time.sleep(1000)\n"
)


async def test_a_signal_reaches_the_whole_tree(guest: WireGuest) -> None:
    code = FAMILY.replace("os._exit(number)", "who != 'leader' and os._exit(0)")
    run = guest.python(code)
    await guest.written(run, b"ready")
    signal(guest, run, 10)
    await guest.until(lambda: run.output().count(b" 10\n") == 3)
    signal(guest, run, 9)
    finished = await guest.end(run)
    assert sorted(run.output().split(b"\n")[1:-1]) == [b"child 10", b"grandchild 10", b"leader 10"]
    assert (finished["signal"], finished["cause"], finished["signalled"]) == (9, None, [10, 9])


async def test_a_signal_for_the_leader_reaches_nobody_else(guest: WireGuest) -> None:
    run = guest.python(FAMILY)
    await guest.written(run, b"ready")
    signal(guest, run, 12, leader_only=True)
    finished = await guest.end(run)
    assert run.output() == b"ready\nleader 12\n"
    assert (finished["exit_code"], finished["signalled"]) == (12, [12])


async def test_a_signal_reaches_no_other_execution(guest: WireGuest) -> None:
    other, run = guest.command("sleep", "1000"), guest.shell("echo up; sleep 1000")
    await guest.written(run, b"up")
    signal(guest, run, 15)
    assert (await guest.end(run))["signal"] == 15
    assert other.finished is None
    signal(guest, other, 1)
    assert (await guest.end(other))["signal"] == 1


@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 15, 34, 64])
async def test_a_signal_sent_right_after_the_start_hits_the_program_and_not_its_preparation(
    guest: WireGuest, number: int
) -> None:
    run = guest.command("sleep", "1000")
    signal(guest, run, number)
    finished = await guest.end(run)
    assert (finished["signal"], finished["signalled"], finished["cause"]) == (number, [number], None)


async def test_a_signal_that_whoever_started_the_guest_ignores_ends_a_program() -> None:
    """As SIGQUIT is by whatever a shell runs in the background."""
    before = signals.signal(signals.SIGQUIT, signals.SIG_IGN)
    try:
        async with wire_guest() as guest:
            for run in (guest.command("sleep", "1000"), guest.python("import time\ntime.sleep(1000)")):
                signal(guest, run, 3)
                assert (await guest.end(run))["signal"] == 3
    finally:
        signals.signal(signals.SIGQUIT, before)


async def test_an_early_interrupt_is_an_exception_in_python(guest: WireGuest) -> None:
    run = guest.python("import time\ntime.sleep(1000)")
    signal(guest, run, 2)
    finished = await guest.end(run)
    assert (finished["exit_code"], finished["exception"]["type"]) == (1, "KeyboardInterrupt")
    shown = run.output(2).decode()
    assert shown.endswith("KeyboardInterrupt\n")
    assert "guest" not in shown


async def test_of_a_hundred_signals_before_the_start_the_first_are_kept(guest: WireGuest) -> None:
    slow = guest.python("input()", context="default", stdin=True)
    # The queue of a context: the program is nowhere near its start.
    waiting = guest.python("import time; time.sleep(1000)", context="default")
    for number in range(100):
        signal(guest, waiting, 34 + number % 30)
    await guest.ping()
    guest.send("stdin", b"go\n", execution=slow.name, offset=0)
    finished = await guest.end(waiting)
    assert finished["signal"] in range(34, 64)
    assert 0 < len(finished["signalled"]) <= SIGNALS_KEPT
    assert waiting.output() == b""
    again = guest.python("print('alive')", context="default")
    assert (await guest.end(again))["fresh_context"] is True
    assert again.output() == b"alive\n"


async def test_a_signal_for_a_program_that_has_ended_changes_nothing(guest: WireGuest) -> None:
    run = guest.shell("exit 3")
    finished = await guest.end(run)
    signal(guest, run, 9)
    guest.send("signal", execution="nobody", number=9, leader_only=False)
    await guest.ping()
    again = guest.command("true")
    await guest.end(again)
    assert (run.finished, finished["exit_code"], finished["signalled"]) == (finished, 3, [])


async def test_a_stopped_tree_goes_on_when_it_is_continued(guest: WireGuest) -> None:
    run = guest.python("import os\nprint('ready', flush=True)\nprint(os.read(0, 100))", stdin=True)
    await guest.written(run, b"ready")
    signal(guest, run, 19)
    guest.send("stdin", b"x", execution=run.name, offset=0)
    await guest.ping()
    assert b"x" not in run.output()
    signal(guest, run, 18)
    finished = await guest.end(run)
    assert (run.output(), finished["signalled"]) == (b"ready\nb'x'\n", [19, 18])


@pytest.mark.parametrize("number", [0, 65, -1, "9", True, None, 1.5])
async def test_a_number_that_is_no_signal_ends_the_connection(guest: WireGuest, number: object) -> None:
    run = guest.command("sleep", "1000")
    before = guest.connections
    guest.send("signal", execution=run.name, number=number, leader_only=False)
    await guest.until(lambda: guest.connections > before)
    assert run.finished is None


async def test_an_interrupt_ends_a_call_and_the_context_lives(guest: WireGuest) -> None:
    await guest.end(guest.python("x = 'kept'", context="default"))
    run = guest.python("print('in', flush=True)\nwhile True: pass", context="default")
    await guest.written(run, b"in")
    signal(guest, run, 2)
    finished = await guest.end(run)
    assert (finished["exception"]["type"], finished["state_preserved"]) == ("KeyboardInterrupt", True)
    assert (finished["cause"], finished["signalled"]) == (None, [2])
    after = guest.python("print(x)", context="default")
    await guest.end(after)
    assert after.output() == b"kept\n"


async def test_an_interrupt_hits_the_call_that_it_was_meant_for_however_early(guest: WireGuest) -> None:
    """Each call is signalled as soon as it is sent, and the one between must not notice."""
    await guest.end(guest.python("import time", context="default"))
    for _ in range(50):
        run = guest.python("time.sleep(1000)", context="default")
        signal(guest, run, 2)
        between = guest.python("print('in peace')", context="default")
        finished = await guest.end(run)
        assert (finished["exception"]["type"], finished["state_preserved"]) == ("KeyboardInterrupt", True)
        assert (await guest.end(between))["exception"] is None
        assert between.output() == b"in peace\n"


async def test_an_interrupt_at_the_end_of_a_call_never_hits_the_next_one(guest: WireGuest) -> None:
    await guest.end(guest.python("pass", context="default"))
    for _ in range(200):
        run, following = guest.python("pass", context="default"), guest.python("print('in peace')", context="default")
        signal(guest, run, 2)
        assert (await guest.end(following))["exception"] is None, "it was interrupted for another one"
        assert following.output() == b"in peace\n"


async def test_an_interrupt_that_user_code_sends_between_calls_hurts_nobody(guest: WireGuest) -> None:
    code = (
        "import os, threading, time\n"
        "def later():\n"
        "    threading.main_thread()\n"
        "    time.sleep(.1)\n"
        "    os.kill(os.getpid(), 2)\n"
        "    open('sent', 'w').close()\n"
        "threading.Thread(target=later, daemon=True).start()\n"
    )
    await guest.end(guest.python(code, context="default"))
    await guest.end(guest.shell("while [ ! -e sent ]; do :; done"))
    run = guest.python("print('in peace')", context="default")
    finished = await guest.end(run)
    assert (finished["exception"], run.output()) == (None, b"in peace\n")


async def test_a_signal_that_kills_a_context_is_told_and_the_next_call_is_fresh(guest: WireGuest) -> None:
    run = guest.python("print('in', flush=True)\nimport time; time.sleep(1000)", context="default")
    await guest.written(run, b"in")
    signal(guest, run, 15)
    finished = await guest.end(run)
    assert (finished["signal"], finished["state_preserved"], finished["signalled"]) == (15, False, [15])
    assert (await guest.end(guest.python("pass", context="default")))["fresh_context"] is True


async def test_a_timeout_shorter_than_a_start_still_interrupts(guest: WireGuest) -> None:
    run = guest.python("import time\ntime.sleep(1000)", context="default", timeout_s=0.000001)
    finished = await guest.end(run)
    assert (finished["cause"], finished["exception"]["type"]) == ("timeout", "KeyboardInterrupt")
    assert finished["state_preserved"] is True


async def test_a_context_that_never_says_that_it_has_begun_can_be_killed(guest: WireGuest) -> None:
    """Its threads keep the interpreter to themselves, so the call that follows an interrupted one cannot begin."""
    code = (
        "import ctypes, threading, time\n"
        "def keep():\n"
        "    time.sleep(.2)\n"
        "    ctypes.PyDLL(None).sleep(1000)\n"
        "threading.Thread(target=keep, daemon=True).start()\n"
        "print('in', flush=True)\n"
        "while True: time.sleep(.01)\n"
    )
    first = guest.python(code, context="default")
    await guest.written(first, b"in")
    signal(guest, first, 2)
    await guest.end(first)
    await guest.end(guest.command("sleep", "0.5"))
    stuck = guest.python("print('begun')", context="default")
    signal(guest, stuck, 2)
    await guest.ping()
    signal(guest, stuck, 9)
    finished = await guest.end(stuck)
    assert (finished["signal"], finished["signalled"], stuck.output()) == (9, [9], b"")
    assert (await guest.end(guest.python("pass", context="default")))["fresh_context"] is True
