"""Programs that hide, attack what waits for work, or play with what the guest gave them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from enclaved.model import Verdict
from tests.service.guest.laboratory import Box, Laboratory, ended, first_output, printed, text, until


def threads_of(uid: int) -> list[tuple[int, str]]:
    """Every thread of a user that is alive, with its process, as this machine sees them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        try:
            owner, fields = stat.stat().st_uid, stat.read_text().rpartition(") ")[2].split()
            status = dict(line.split(":", 1) for line in stat.with_name("status").read_text().splitlines())
        except OSError:
            continue
        if (owner == uid or int(status["Uid"].split()[0]) == uid) and fields[0] not in "ZX":
            found.append((int(stat.parts[2]), status["Name"].strip()))
    return found


# A process whose first thread has ended is a zombie to those who look at the process alone; another thread runs on.
HEADLESS = """
import ctypes, os, platform, threading, time
exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
def run():
    head = f"/proc/{os.getpid()}/task/{os.getpid()}/stat"
    while open(head).read().rpartition(") ")[2][0] != "Z":
        pass
    os.write(1, b"headless\\n")
    while True:
        time.sleep(600)
def behead():
    threading.Thread(target=run).start()
    ctypes.CDLL(None).syscall(exit_thread, 0)
"""
ORPHANED = (
    HEADLESS + "if os.fork() == 0:\n    if os.fork() == 0:\n        os.setsid()\n        behead()\n    os._exit(0)\n"
)


@pytest.mark.parametrize("tool", ["isolated", "context"])
async def test_a_process_that_ended_its_first_thread_dies_with_the_execution_that_made_it(box: Box, tool: str) -> None:
    code = ORPHANED + "os.wait()\ninput()\n"
    execution = await box.open_python(code, isolated=tool == "isolated", stdin=True)
    assert await first_output(execution) == b"headless\n"
    await execution.write_stdin(b"\n")
    assert (await execution.ended).verdict is Verdict.EXITED
    left = threads_of(box.record.uid)
    assert len(left) == (1 if tool == "context" else 0), left


async def test_a_process_that_ended_its_first_thread_dies_among_others_when_it_can_be_attributed(box: Box) -> None:
    other = await box.open_shell("echo begun; read line", stdin=True)
    await first_output(other)
    code = HEADLESS + "if os.fork() == 0: behead()\ninput()\n"
    execution = await box.open_python(code, isolated=True, stdin=True)
    assert await first_output(execution) == b"headless\n"
    await execution.write_stdin(b"\n")
    assert (await execution.ended).verdict is Verdict.EXITED
    assert [name for _, name in threads_of(box.record.uid) if name.startswith("python")] == []
    await other.write_stdin(b"\n")


async def test_a_program_that_ended_its_first_thread_ends_at_its_timeout(box: Box) -> None:
    finished = ended(await box.isolated(HEADLESS + "behead()", timeout_s=0.3))
    assert (finished.verdict, finished.signal) == (Verdict.TIMEOUT, 9)
    assert threads_of(box.record.uid) == []


async def test_a_stop_kills_a_process_that_ended_its_first_thread(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=False)
    execution = await box.open_python(ORPHANED + "os.wait()\ntime.sleep(600)", isolated=True)
    assert await first_output(execution) == b"headless\n"
    await lab.sandboxes.stop(box.id)
    assert threads_of(box.record.uid) == []


ATTACK = """
import ctypes, json, os, resource, signal, time
libc = ctypes.CDLL(None, use_errno=True)
def trace(pid):
    if libc.ptrace(0x4206, pid, 0, 0) != 0: raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, pid, 0, 0)
acts = {
    "files": lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, 5)),
    "processor time": lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
    "address space": lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, (2**20, 2**20)),
    "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
    "processors": lambda pid: os.sched_setaffinity(pid, {0}),
    "scheduler": lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    "trace": trace,
    "memory": lambda pid: open(f"/proc/{pid}/mem", "r+b").close(),
    "signal": lambda pid: os.kill(pid, 0),
    "descriptors": lambda pid: os.listdir(f"/proc/{pid}/fd"),
}
done, seen = set(), set()
until = time.monotonic() + 0.3
while time.monotonic() < until:
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid != os.getpid():
            seen.add(pid)
            for name, act in acts.items():
                try: act(pid)
                except OSError: pass
                else: done.add(name)
print(json.dumps([sorted(done), len(seen)]))
"""
CONDITIONS = """
import json, os, resource
names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
print(json.dumps([
    {name: resource.getrlimit(getattr(resource, name))[1] for name in names},
    os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0), os.getpgid(0) > 1,
]))
"""


async def test_a_process_that_waits_for_work_cannot_be_touched(box: Box) -> None:
    before = printed(await box.isolated(CONDITIONS))
    done, seen = json.loads(printed(await box.isolated(ATTACK)))
    assert done == []
    assert seen >= 3  # the guest, the template, and at least one that waits
    for _ in range(2):
        assert printed(await box.isolated(CONDITIONS)) == before
    assert printed(await box.python(CONDITIONS)) == before


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_signals_to_everything_do_not_reach_a_process_that_waits_for_work(
    box: Box, number: signal.Signals
) -> None:
    await until(lambda: len(box.children_of_guest()) == 2)
    before = printed(await box.isolated(CONDITIONS))
    code = (
        "import os, time\n"
        "until = time.monotonic() + 0.2\n"
        "while time.monotonic() < until:\n"
        f"    try: os.kill(-1, {int(number)})\n"
        "    except ProcessLookupError: pass\n"  # there is nobody whom it may signal
    )
    assert printed(await box.isolated(code)) == ""
    children = box.children_of_guest()
    assert [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] for pid in children] == ["S"] * 2
    assert printed(await box.isolated(CONDITIONS)) == before


async def test_a_fork_that_fails_does_not_speak_for_its_parent(box: Box) -> None:
    code = "import os, sys\nif os.fork() == 0: raise ValueError('of the child')\nos.wait()\nsys.exit(3)\n"
    result = await box.isolated(code)
    finished = ended(result)
    assert text(result.stderr).endswith("ValueError: of the child\n")
    assert (finished.verdict, finished.exit_code, finished.exception) == (Verdict.EXITED, 3, None)


ON_ITS_SOCKET = {
    "another socket, which nobody reads": ("ours, theirs = socket.socketpair()", 4),
    "another socket, and then failing": ("ours, theirs = socket.socketpair()\nlast = SystemExit('words')", 1),
    "a file": ("theirs = open('file', 'wb')", 4),
    "a pipe without a reader": ("ours, theirs = os.pipe()\nos.close(ours)\ntheirs = open(theirs, 'wb')", 4),
}


@pytest.mark.parametrize("what", ON_ITS_SOCKET)
async def test_a_context_that_replaced_the_guests_socket_ends_with_its_own_code_at_once(box: Box, what: str) -> None:
    prepare, exit_code = ON_ITS_SOCKET[what]
    code = f"import os, socket\nlast = SystemExit(4)\n{prepare}\nos.dup2(theirs.fileno(), 3)\nraise last\n"
    finished = ended(await box.python(code, timeout_s=60))
    assert (finished.verdict, finished.exit_code, finished.attested) == (Verdict.EXITED, exit_code, True)
    assert finished.state_preserved is False
    result = await box.python("print('next')")
    assert printed(result) == "next\n"
    assert len(result.notices) == 1


async def test_a_context_survives_what_a_call_sets_on_the_guests_socket(box: Box) -> None:
    finished = ended(await box.python("import os\nos.set_blocking(3, False)\nx = 1"))
    assert finished.state_preserved is True
    assert printed(await box.python("print(x)")) == "1\n"


STREAMS = {
    "echo out > /dev/stdout; echo err > /dev/stderr": ("out\n", "err\n"),
    "echo out | tee /dev/stdout": ("out\nout\n", ""),
    "echo err | tee /dev/stderr >/dev/null": ("", "err\n"),
    "echo out > /proc/self/fd/1; echo err > /dev/fd/2": ("out\n", "err\n"),
    "cat /dev/stdin": ("input\n", ""),
    "cat < /dev/stdin; cat /dev/fd/0": ("input\n", ""),
}


@pytest.mark.parametrize("command", STREAMS)
async def test_a_command_can_open_its_streams_by_name(box: Box, command: str) -> None:
    stdout, stderr = STREAMS[command]
    execution = await box.open_shell(command, stdin="stdin" in command or "/0" in command)
    if execution.handle.options.stdin:
        await execution.write_stdin(b"input\n")
        await execution.end_input()
    result = await execution.collect()
    assert (printed(result), text(result.stderr)) == (stdout, stderr)


async def test_python_can_open_its_streams_by_name(box: Box) -> None:
    code = (
        "open('/dev/stdout', 'w').write('out ')\n"
        "open('/dev/stderr', 'w').write('err')\n"
        "print(open('/dev/stdin').read())\n"
    )
    for isolated in (True, False):
        execution = await box.open_python(code, isolated=isolated, stdin=True)
        await execution.write_stdin(b"in")
        await execution.end_input()
        result = await execution.collect()
        assert (printed(result), text(result.stderr)) == ("out in\n", "err")
    assert printed(await box.isolated("print(repr(open('/dev/stdin').read()))")) == "''\n"


async def test_strays_die_when_the_last_execution_beside_them_is_cancelled_before_it_starts(box: Box) -> None:
    await until(lambda: len(box.children_of_guest()) == 2)
    template, _ = box.children_of_guest()
    stray = "setsid sh -c 'for n in 1 2 3 4 5 6; do setsid sleep 600 & done; echo stray >&2; exec sleep 600'"
    first = await box.open_shell(f"({stray} &) ; echo begun; read line", stdin=True)
    assert await first_output(first)
    await until(lambda: len([name for _, name in threads_of(box.record.uid) if name == "sleep"]) == 7)
    await until(lambda: len(box.children_of_guest()) >= 3)
    os.kill(template, signal.SIGSTOP)
    try:
        second = await box.open_shell("echo second; read line", stdin=True)  # takes the one that waits
        await first_output(second)
        late = await box.open_shell("echo late")
        await first.write_stdin(b"\n")
        await second.write_stdin(b"\n")
        assert (await first.ended).exit_code == 0
        assert (await second.ended).exit_code == 0
        assert len(threads_of(box.record.uid)) == 7
        late.cancel("the test")
        assert (await late.ended).verdict is Verdict.CANCELLED
        await until(lambda: threads_of(box.record.uid) == [])
    finally:
        os.kill(template, signal.SIGCONT)
    assert printed(await box.shell("echo next")) == "next\n"


async def test_many_short_programs_that_write_more_than_they_may_all_hear_of_it(box: Box) -> None:
    """However the end of a program and the reading of its output happen to follow each other."""
    runs = [box.shell("head -c 3000 /dev/zero; head -c 3000 /dev/zero >&2", output_limit_bytes=5000) for _ in range(20)]
    for result in await asyncio.gather(*runs):
        assert ended(result).verdict is Verdict.OUTPUT_LIMIT
        assert len(result.stdout) + len(result.stderr) == 5000


async def test_the_sources_of_old_calls_are_not_kept(box: Box) -> None:
    for _ in range(300):
        await box.python("pass")
    code = "import linecache\nprint(sum(name.startswith('<call ') for name in linecache.cache))"
    assert int(printed(await box.python(code))) == 256
