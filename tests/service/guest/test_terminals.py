"""Terminals of programs: what a program sees of one, and what it can do to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import TERMINALS_MAX
from tests.service.guest.wire import UID, WireGuest, wire_guest

SIZE = [24, 80]
JOB = """
import os, time
before = None
try:
    while True:
        place = 'front' if os.tcgetpgrp(0) == os.getpgrp() else 'back'
        if place != before:
            print('in', place, flush=True)
        before = place
        time.sleep(0.01)
except KeyboardInterrupt:
    print('interrupted')
"""
"""Says where it is from when on, until it is interrupted."""


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


async def test_a_program_has_one_terminal_for_input_output_and_errors(guest: WireGuest) -> None:
    code = (
        "import os, sys\n"
        "assert all(os.isatty(fd) for fd in (0, 1, 2))\n"
        "names = {os.ttyname(fd) for fd in (0, 1, 2)}\n"
        "(name,) = names\n"
        "print(os.stat(name).st_uid, os.get_terminal_size(), os.environ['TERM'])\n"
        "print('error', file=sys.stderr)\n"
        "print(os.getsid(0) == os.getpid() == os.tcgetpgrp(0), os.open('/dev/tty', os.O_RDWR) > 2)\n"
        "open(name, 'w').write('by name')\n"
    )
    run = guest.python(code, terminal=[30, 100])
    finished = await guest.end(run)
    expected = f"{UID} os.terminal_size(columns=100, lines=30) xterm-256color\r\nerror\r\nTrue True\r\nby name"
    assert (run.screen, finished["exit_code"]) == (expected, 0)
    assert finished["bytes_total"] == {"3": len(expected)}
    assert {header["channel"] for header, _ in run.chunks} == {3}


async def test_the_callers_own_term_is_kept(guest: WireGuest) -> None:
    job = {"kind": "command", "argv": [], "shell": "echo $TERM", "env": {"PATH": "/usr/bin:/bin", "TERM": "dumb"}}
    run = guest.start(job, terminal=SIZE)
    await guest.end(run)
    assert run.screen == "dumb\r\n"


async def test_a_program_without_a_terminal_has_none(guest: WireGuest) -> None:
    run = guest.shell("tty; : < /dev/tty")
    await guest.end(run)
    assert run.output() == b"not a tty\n"
    assert b"/dev/tty" in run.output(2)


async def test_what_is_typed_is_echoed_and_read_line_by_line(guest: WireGuest) -> None:
    run = guest.command("cat", terminal=SIZE)
    offset = guest.type(run, "hello\n", 0)
    await guest.shown(run, "hello\r\nhello\r\n")
    guest.type(run, "lo\nworld\n", offset - 3)  # what came before is not typed twice
    await guest.shown(run, "world\r\nworld\r\n")
    guest.send("end_of_input", execution=run.name)
    finished = await guest.end(run)
    assert (finished["exit_code"], run.screen) == (0, "hello\r\nhello\r\nworld\r\nworld\r\n")
    assert [frame["offset"] for frame in run.frames if frame["type"] == "stdin_taken"][-1] == 12


async def test_the_end_of_the_input_comes_after_a_line_without_an_end(guest: WireGuest) -> None:
    run = guest.python("import sys; print(repr(sys.stdin.read()))", terminal=SIZE)
    guest.type(run, "half", 0)
    guest.send("end_of_input", execution=run.name)
    await guest.end(run)
    assert run.screen == "half'half'\r\n"


async def test_a_program_in_raw_mode_reads_the_end_of_the_input_as_a_character(guest: WireGuest) -> None:
    code = "import sys, tty; tty.setraw(0); print('raw', flush=True); print(ascii(sys.stdin.read(2)))"
    run = guest.python(code, terminal=SIZE)
    await guest.shown(run, "raw")
    guest.type(run, "a", 0)
    guest.send("end_of_input", execution=run.name)
    await guest.end(run)
    assert run.screen.endswith(r"'a\x04'" + "\n")


async def test_the_end_of_the_input_reaches_a_program_that_takes_line_editing_over_after_it(guest: WireGuest) -> None:
    run = guest.command("/usr/bin/python3", "-i", terminal=[24, 80], stdin=True)
    guest.type(run, "print(6 * 7)\n", 0)
    guest.send("end_of_input", execution=run.name)
    end = await guest.end(run)
    assert (end["cause"], end["exit_code"]) == (None, 0)
    assert "42" in run.screen


async def test_ctrl_c_interrupts_what_is_in_the_foreground(guest: WireGuest) -> None:
    run = guest.command("cat", terminal=SIZE)
    offset = guest.type(run, "x\n", 0)
    await guest.shown(run, "x\r\nx\r\n")
    guest.type(run, "\x03", offset)
    finished = await guest.end(run)
    assert (finished["signal"], finished["cause"], finished["signalled"]) == (2, None, [])


async def test_a_new_size_is_told_to_the_program(guest: WireGuest) -> None:
    code = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})\n"
        "print('first', tuple(os.get_terminal_size()), flush=True)\n"
        "signal.sigwait({signal.SIGWINCH})\n"
        "print('now', tuple(os.get_terminal_size()))\n"
    )
    run = guest.python(code, terminal=SIZE)
    await guest.shown(run, "first (80, 24)")
    guest.send("resize", execution=run.name, rows=50, columns=132)
    assert (await guest.end(run))["exit_code"] == 0
    assert run.screen.endswith("now (132, 50)\r\n")


async def test_a_size_that_comes_before_the_program_is_its_first(guest: WireGuest) -> None:
    run = guest.command("stty", "size", terminal=SIZE)
    guest.send("resize", execution=run.name, rows=3, columns=7)
    without = guest.command("true")
    guest.send("resize", execution=without.name, rows=3, columns=7)
    await guest.end(run)
    assert run.screen in ("3 7\r\n", "24 80\r\n")
    assert (await guest.end(without))["exit_code"] == 0


async def test_a_shell_has_job_control(guest: WireGuest) -> None:
    run = guest.command("bash", "--norc", "--noprofile", "-i", terminal=SIZE)
    await guest.shown(run, "$ ")
    (guest.working_dir / "job.py").write_text(JOB)
    offset = guest.type(run, "/usr/bin/python3 job.py\n", 0)
    await guest.shown(run, "in front\r\n")
    offset = guest.type(run, "\x1a", offset)
    await guest.shown(run, "Stopped")
    offset = guest.type(run, "bg\n", offset)
    await guest.shown(run, "in back\r\n")
    offset = guest.type(run, "jobs; echo $((3 + 5)) on; fg\n", offset)
    await guest.shown(run, "8 on\r\n/usr/bin/python3 job.py")
    assert "Running" in run.screen
    # The shell says its name before it is there.
    await guest.until(lambda: "in front\r\n" in run.screen.rpartition("in back\r\n")[2])
    offset = guest.type(run, "\x03", offset)
    await guest.shown(run, "interrupted\r\n")
    offset = guest.type(run, "echo $((6 * 7)); exit 5\n", offset)
    finished = await guest.end(run)
    assert "no job control" not in run.screen
    assert "42\r\n" in run.screen
    assert finished["exit_code"] == 5


async def test_the_python_prompt_behaves(guest: WireGuest) -> None:
    run = guest.command("/usr/bin/python3", "-q", "-i", terminal=SIZE)
    await guest.shown(run, ">>> ")
    offset = guest.type(run, "6 * 7\n", 0)
    await guest.shown(run, "42\r\n")
    offset = guest.type(run, "print('lo' + 'op'); exec('while True: pass')\n", offset)
    await guest.shown(run, "loop\r\n")
    offset = guest.type(run, "\x03", offset)
    await guest.shown(run, "KeyboardInterrupt")
    offset = guest.type(run, "print('still ' + 'here')\n", offset)
    await guest.until(lambda: run.screen.rpartition("still here\r\n")[2].endswith(">>> "))
    guest.send("end_of_input", execution=run.name)
    assert (await guest.end(run))["exit_code"] == 0


@pytest.mark.parametrize(("program", "quit_with"), [(["vim", "-u", "NONE"], "\x1b:q!\r"), (["top"], "q")])
async def test_programs_that_paint_the_screen_behave(guest: WireGuest, program: list[str], quit_with: str) -> None:
    if shutil.which(program[0]) is None:
        program, quit_with = ["sh", "-c", "stty raw; printf '\\033[H'; head -c 1 > /dev/null"], "q"
    run = guest.command(*program, terminal=SIZE)
    await guest.shown(run, "\x1b[H")
    guest.type(run, quit_with, 0)
    assert (await guest.end(run))["exit_code"] == 0


async def test_large_input_and_output_pass_through_a_terminal_unharmed(guest: WireGuest) -> None:
    code = (
        "import hashlib, os, tty\n"
        "tty.setraw(0)\n"
        "os.write(1, b'raw')\n"
        "seen = hashlib.sha256()\n"
        "left = 300000\n"
        "while left:\n"
        "    data = os.read(0, left)\n"
        "    left -= len(data)\n"
        "    seen.update(data)\n"
        "os.write(1, seen.hexdigest().encode())\n"
        "for number in range(1000): os.write(1, b'%06d' % number * 100)\n"
    )
    run = guest.python(code, terminal=SIZE)
    await guest.shown(run, "raw")
    data = bytes(range(256)) * 1200
    data = data[:300000]
    for start in range(0, len(data), 50000):
        guest.send("stdin", data[start : start + 50000], execution=run.name, offset=start)
        taken = start + 50000
        await guest.until(lambda taken=taken: (run.last("stdin_taken") or {"offset": 0})["offset"] >= taken)
    finished = await guest.end(run)
    body = b"".join(b"%06d" % number * 100 for number in range(1000))
    assert run.output(3) == b"raw" + hashlib.sha256(data).hexdigest().encode() + body
    assert finished["exit_code"] == 0


async def test_a_program_that_closes_its_terminal_goes_on_and_may_open_it_again(guest: WireGuest) -> None:
    code = (
        "import os, sys, time\n"
        "name = os.ttyname(0)\n"
        "os.closerange(0, 3)\n"
        "deadline = time.monotonic() + 0.5\n"
        "while time.monotonic() < deadline: pass\n"
        "fd = os.open('/dev/tty', os.O_RDWR)\n"
        "os.write(fd, b'again ')\n"
        "os.write(fd, os.read(fd, 100))\n"
        "os._exit(3)\n"
    )
    run = guest.python(code, terminal=SIZE)
    await guest.shown(run, "again ")
    guest.type(run, "typed\n", 0)
    finished = await guest.end(run)
    assert (finished["exit_code"], finished["signal"]) == (3, None)
    assert run.screen == "again typed\r\ntyped\r\n"


async def test_daemonised_children_that_hold_the_terminal_die_with_the_program(guest: WireGuest) -> None:
    code = (
        "import os, signal, time\n"
        "there, here = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "        os.write(1, b'daemon\\n')\n"
        "        os.write(here, b'x')\n"
        "        time.sleep(1000)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "os.read(there, 1)\n"
        "print('leader')\n"
    )
    other = guest.command("sleep", "1000")
    run = guest.python(code, terminal=SIZE)
    finished = await guest.end(run)
    assert finished["exit_code"] == 0
    assert sorted(run.screen.split()) == ["daemon", "leader"]
    guest.send("cancel", execution=other.name)
    await guest.end(other)
    assert await guest.processes() == set()


async def test_a_terminal_that_another_program_took_first_is_refused_to_nobody_else(guest: WireGuest) -> None:
    """User code cannot keep later executions from theirs by grabbing the numbers of terminals that exist."""
    thief = guest.python(
        "import os, time\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for name in os.listdir('/dev/pts'):\n"
        "        try: os.close(os.open('/dev/pts/' + name, os.O_RDWR | os.O_NOCTTY))\n"
        "        except OSError: pass\n"
    )
    await guest.written(thief, b"ready")
    for _ in range(5):
        run = guest.shell("tty -s && echo fine", terminal=SIZE)
        await guest.end(run)
        assert run.screen == "fine\r\n"
    guest.send("cancel", execution=thief.name)
    await guest.end(thief)


async def test_only_so_many_terminals_are_open_at_once(guest: WireGuest) -> None:
    runs = [guest.command("cat", terminal=SIZE) for _ in range(TERMINALS_MAX)]
    refused = guest.command("cat", terminal=SIZE)
    await guest.until(lambda: refused.last("refused"))
    assert (refused.last("refused") or {})["code"] == "full"
    without = guest.command("true")
    assert (await guest.end(without))["exit_code"] == 0
    guest.send("cancel", execution=runs[0].name)
    await guest.end(runs[0])
    again = guest.shell("exit 0", terminal=SIZE)
    assert (await guest.end(again))["exit_code"] == 0
    guest.send("park", number=1)
    await guest.until(lambda: any(frame["type"] == "parked" for frame in guest.frames))


async def test_a_context_gets_no_terminal(guest: WireGuest) -> None:
    run = guest.python("print(1)", context="default", terminal=SIZE)
    await guest.until(lambda: run.last("refused"))
    assert run.last("refused") == {
        "type": "refused",
        "execution": run.name,
        "code": "no_process",
        "message": "a context has no terminal",
    }


@pytest.mark.parametrize("size", [[0, 80], [24], "24x80", [24.5, 80], [True, 80]])
async def test_a_size_that_is_none_ends_the_connection(guest: WireGuest, size: object) -> None:
    before = guest.connections
    guest.command("true", terminal=size)
    await guest.until(lambda: guest.connections > before)


async def test_a_terminal_whose_reader_is_slow_makes_the_program_wait(guest: WireGuest) -> None:
    run = guest.shell("head -c 20000000 /dev/zero | tr '\\0' x", terminal=SIZE, follow=False)
    await guest.until(lambda: run.last("full"))
    await guest.ping()
    assert run.finished is None
    guest.follow(run, 1)
    acknowledged = 0
    while run.last("end") is None:
        seen = sum(len(data) for _, data in run.chunks)
        if seen > acknowledged:
            acknowledged = seen
            guest.send("acknowledge", execution=run.name, offsets={"3": seen})
        await guest.ping()
    assert run.output(3) == b"x" * 20000000
