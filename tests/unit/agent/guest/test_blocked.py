"""What the observer makes of /proc: who waits for input, and who only looks like it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from enclaved.agent.guest import blocked
from enclaved.agent.guest.blocked import Target, awaits_input
from enclaved.agent.guest.procfs import text_of
from enclaved.agent.guest.usage import Sampler, tree_of

PATIENCE_S = 60.0

READ = "os.read(0, 1)"
READ_LINE = "input()"
POLL = "p = select.poll(); p.register(0, select.POLLIN); p.poll()"
SELECT = "select.select([0], [], [])"
SELECT_FOR_A_WHILE = "select.select([0], [], [], 1000)"
EPOLL = "e = select.epoll(); e.register(0, select.EPOLLIN); e.poll()"
SPLICE = "r, w = os.pipe(); os.splice(0, w, 1) if hasattr(os, 'splice') else os.read(0, 1)"
THREAD = "t = threading.Thread(target=os.read, args=(0, 1)); t.start(); t.join()"
EVENT_LOOP = "loop = asyncio.new_event_loop(); loop.add_reader(0, print); loop.run_forever()"
COPY = "os.read(os.dup(0), 1)"

SLEEP = "time.sleep(1000)"
OLD_SLEEP = "select.select([], [], [], 1000)"
POLL_NOTHING = "select.poll().poll()"
LOCK = "l = threading.Lock(); l.acquire(); l.acquire()"
OTHER_PIPE = "r, w = os.pipe(); os.read(r, 1)"
SOCKET = "a, b = socket.socketpair(); a.recv(1)"
SERVER = "s = socket.create_server(('127.0.0.1', 0)); s.accept()"
CHILD = "subprocess.call(['sleep', '1000'])"
CHILDS_OUTPUT = "subprocess.check_output(['sleep', '1000'])"
POLL_CHILD = "c = subprocess.Popen(['sleep', '1000'], stdout=-1); select.select([0, c.stdout], [], [])"
POLL_SERVER = "s = socket.create_server(('127.0.0.1', 0)); select.select([0, s], [], [])"
WRITE_FULL = "r, w = os.pipe(); os.write(w, bytes(100000))"
POLL_FULL = """
r, w = os.pipe()
os.set_blocking(w, False)
os.write(w, bytes(100000))
select.select([], [w], [])
"""
COMPUTE = "while True: pass"
SPIN = """
os.set_blocking(0, False)
while True:
    try: os.read(0, 1)
    except BlockingIOError: pass
"""

WAITING = [READ, READ_LINE, POLL, SELECT, SELECT_FOR_A_WHILE, EPOLL, SPLICE, THREAD, EVENT_LOOP, COPY]
BUSY = [SLEEP, OLD_SLEEP, POLL_NOTHING, LOCK, OTHER_PIPE, SOCKET, SERVER, CHILD, CHILDS_OUTPUT, POLL_CHILD]
BUSY += [POLL_SERVER, WRITE_FULL, POLL_FULL, COMPUTE, SPIN]
IMPORTS = "import asyncio, os, select, socket, subprocess, sys, threading, time, tty\n"


@dataclass
class Program:
    """A program in a session of its own, with what it may wait for."""

    pid: int
    target: Target

    def pids(self) -> list[int]:
        """The program and its children."""
        children = text_of(f"/proc/{self.pid}/task/{self.pid}/children") or ""
        return [self.pid, *map(int, children.split())]

    def settle(self) -> None:
        """Waits until it sleeps, or has computed for a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            text = text_of(f"/proc/{self.pid}/stat") or ""
            fields = text[text.rindex(")") + 2 :].split()
            if fields[0] == "S" or int(fields[11]) + int(fields[12]) > 10:
                return
            time.sleep(0.005)
        raise AssertionError(text)

    def awaits(self) -> bool:
        """Whether it is seen to wait at last."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if awaits_input(self.pids(), self.target):
                return True
            time.sleep(0.005)
        return False


Start = Callable[[str], Program]


@pytest.fixture(params=["pipe", "terminal"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts Python with a pipe or a terminal as its standard input."""
    processes, fds = [], []

    def starts(code: str) -> Program:
        ours, theirs = reversed(os.pipe()) if request.param == "pipe" else pty.openpty()
        fds.append(ours)
        take = "" if request.param == "pipe" else "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        program = take + IMPORTS + "os.write(1, b'.')\n" + code
        command = [sys.executable, "-I", "-S", "-c", program]
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, start_new_session=True)
        processes.append(process)
        found = os.fstat(theirs)
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        terminal = request.param == "terminal"
        target = Target("terminal", found.st_rdev) if terminal else Target("pipe", found.st_ino)
        return Program(process.pid, target)

    yield starts
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("code", WAITING)
def test_a_program_blocked_for_its_input_is_seen(start: Start, code: str) -> None:
    assert start(code).awaits()


@pytest.mark.parametrize("code", BUSY)
def test_a_program_that_waits_for_something_else_is_not_taken_for_one(start: Start, code: str) -> None:
    program = start(code)
    program.settle()
    assert not any(awaits_input(program.pids(), program.target) for _ in range(20))


@pytest.mark.parametrize("code", BUSY)
def test_nor_where_system_calls_may_not_be_read(start: Start, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CALLS", {})
    program = start(code)
    program.settle()
    assert not any(awaits_input(program.pids(), program.target) for _ in range(20))


@pytest.mark.parametrize("code", [READ, READ_LINE, THREAD, COPY])
def test_a_read_is_seen_where_system_calls_may_not_be_read(
    start: Start, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "CALLS", {})
    assert start(code).awaits()


@pytest.mark.parametrize("start", ["terminal"], indirect=True)
def test_who_waits_for_single_keys_is_seen_where_system_calls_may_not_be_read(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "CALLS", {})
    assert start(f"tty.setcbreak(0)\n{SELECT_FOR_A_WHILE}").awaits()


def test_a_stopped_poll_that_was_continued_is_still_one(start: Start) -> None:
    program = start(POLL)
    assert program.awaits()
    os.kill(program.pid, signal.SIGSTOP)
    os.kill(program.pid, signal.SIGCONT)
    assert program.awaits()


def test_processes_that_are_gone_do_not_wait(start: Start) -> None:
    program = start(READ)
    assert not awaits_input([2**22 - 1, 2**22 - 2], program.target)


@pytest.mark.parametrize(
    ("beside", "waiting"),
    [
        ("while :; do :; done", False),
        ("sleep 600", False),
        ("wait", True),
        ("cat", True),
    ],
)
def test_a_tree_waits_only_where_nothing_of_it_goes_on(beside: str, waiting: bool) -> None:
    """One process reads its standard input all the time; it is another one that goes on, or not."""
    command = f"exec 3<&0; cat <&3 & {beside} <&3"
    with subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdin is not None
        target = Target("pipe", os.fstat(program.stdin.fileno()).st_ino)

        def settled() -> bool:
            known = tree_of(Sampler(lambda: {int(n) for n in os.listdir("/proc") if n.isdigit()}).look(0), program.pid)
            shells = [pid for pid in known if text_of(f"/proc/{pid}/comm") == "cat\n"]
            return bool(shells) and awaits_input(shells, target) and awaits_input(known, target) is waiting

        try:
            for _ in range(2000):
                if settled():
                    break
                time.sleep(0.005)
            else:
                raise AssertionError("it never looked as it should")
        finally:
            os.killpg(program.pid, signal.SIGKILL)
