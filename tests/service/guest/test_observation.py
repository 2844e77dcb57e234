"""Samples, notices of awaited input and the observer, by frames to a real guest."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.guest.conversation import PATIENCE_S, UID, Conversation, Header, conversation

WAIT = "import time\nprint('.', flush=True)\ntime.sleep(1000)"


@pytest.fixture
def wire() -> Iterator[Conversation]:
    """A guest of its own for each test."""
    with conversation() as made:
        yield made


def begun(wire: Conversation, execution: str, size: int = 1) -> None:
    """Waits until a program has said that it got there."""
    wire.follow(execution)
    wire.output_of(execution, size)


def usage(wire: Conversation, execution: str) -> dict[str, Any]:
    sampled = wire.ask("sample", execution=execution)
    assert (sampled["type"], sampled["execution"]) == ("sampled", execution)
    assert isinstance(sampled["usage"], dict)
    return sampled["usage"]


def until_used(wire: Conversation, execution: str, name: str, most: float) -> dict[str, Any]:
    """Samples until something has been used."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = usage(wire, execution)
        if found[name] >= most:
            return found
    raise AssertionError(found)


def observers(wire: Conversation) -> list[int]:
    """Children of the guest that have become the user, where a test runs nothing but commands."""
    return [pid for pid, line in wire.user_processes().items() if "--template" in line]


def waiting(wire: Conversation, execution: str) -> bool:
    """The next notice about an execution."""
    notice = wire.expect("awaiting_input", lambda header: header["execution"] == execution)
    assert isinstance(notice["waiting"], bool)
    return notice["waiting"]


# -- samples


def test_a_sample_adds_up_the_whole_tree(wire: Conversation) -> None:
    code = """
import os, threading, time
held = bytearray(50_000_000)
held[::4096] = b"x" * len(held[::4096])
threading.Thread(target=time.sleep, args=(1000,)).start()
for _ in range(3):
    if os.fork() == 0:
        time.sleep(1000)
os.read(os.open("/dev/zero", os.O_RDONLY), 3_000_000)
os.write(os.open("/dev/null", os.O_WRONLY), held[:2_000_000])
print(".", flush=True)
while True:
    pass
"""
    wire.python("1", code, context=None)
    begun(wire, "1")
    found = until_used(wire, "1", "cpu_user_s", 0.2)
    assert found["pids"] == 5
    assert found["memory_peak_bytes"] >= 50_000_000
    assert found["memory_bytes"] >= 50_000_000
    assert found["io_read_bytes"] >= 3_000_000
    assert found["io_write_bytes"] >= 2_000_000
    again = until_used(wire, "1", "cpu_user_s", found["cpu_user_s"] + 0.05)
    assert again["memory_peak_bytes"] >= found["memory_peak_bytes"]
    wire.send("cancel", execution="1")
    finished = wire.finished("1")["usage"]
    for name in ("cpu_user_s", "cpu_system_s", "memory_peak_bytes", "io_read_bytes", "io_write_bytes"):
        assert finished[name] >= again[name], name
    ended = usage(wire, "1")
    assert ended == {**finished, "memory_bytes": 0, "pids": 0}


def test_children_that_have_ended_still_count(wire: Conversation) -> None:
    command = (
        "for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=1M count=20 2>/dev/null; done; echo .; sleep 1000; true"
    )
    wire.shell("1", command)
    begun(wire, "1")
    found = until_used(wire, "1", "pids", 2)
    assert found["io_read_bytes"] >= 60 * 2**20
    assert found["pids"] == 2
    wire.send("cancel", execution="1")
    assert wire.finished("1")["usage"]["io_read_bytes"] >= 60 * 2**20


def test_a_sample_of_one_execution_holds_nothing_of_another(wire: Conversation) -> None:
    wire.python("busy", "print('.', flush=True)\nwhile True: pass", context=None)
    wire.shell("idle", "echo .; sleep 1000")
    begun(wire, "busy")
    begun(wire, "idle")
    until_used(wire, "busy", "cpu_user_s", 0.3)
    assert usage(wire, "idle")["cpu_user_s"] < 0.1


def test_a_sample_of_a_call_is_of_its_interpreter(wire: Conversation) -> None:
    wire.python("1", "sum(range(10_000_000))")
    spent = wire.finished("1")["usage"]["cpu_user_s"]
    wire.python("2", WAIT)
    begun(wire, "2")
    assert usage(wire, "2")["cpu_user_s"] >= spent * 0.9 - 0.02


def test_what_waits_for_its_turn_has_used_nothing(wire: Conversation) -> None:
    wire.python("1", WAIT)
    begun(wire, "1")
    wire.python("2", "pass")
    sampled = wire.ask("sample", execution="2")
    assert set(sampled["usage"].values()) == {0}
    assert sampled["time_s"] == 0


def test_very_many_samples_at_once_are_all_answered(wire: Conversation) -> None:
    wire.python("1", WAIT, context=None)
    begun(wire, "1")
    numbers = [wire.order("sample", execution="1") for _ in range(500)]
    answers = [wire.answer(number) for number in numbers]
    assert {answer["type"] for answer in answers} == {"sampled"}
    assert len({tuple(answer["usage"].values()) for answer in answers[:20]}) == 1


def test_thousands_of_processes_that_come_and_go_are_sampled(wire: Conversation) -> None:
    code = """
import os, time
print(".", flush=True)
while True:
    for _ in range(50):
        if os.fork() == 0:
            os._exit(0)
    try:
        while True: os.waitpid(-1, 0)
    except ChildProcessError:
        pass
"""
    wire.python("1", code, context=None)
    begun(wire, "1")
    for _ in range(50):
        usage(wire, "1")
    hold = "import os, time\nfor _ in range(2000):\n    if os.fork() == 0: time.sleep(1000)\nprint('.', flush=True)\n"
    wire.python("2", hold + "time.sleep(1000)", context=None)
    begun(wire, "2")
    assert until_used(wire, "2", "pids", 2001)["pids"] == 2001
    for execution in ("1", "2"):
        wire.send("cancel", execution=execution)
        assert wire.finished(execution)["cause"] == "cancel"


def test_a_fork_bomb_does_not_keep_samples_from_being_answered(wire: Conversation) -> None:
    code = """
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, (300, 300))
print(".", flush=True)
while True:
    try: os.fork()
    except OSError: pass
"""
    wire.python("1", code, context=None)
    begun(wire, "1")
    for _ in range(20):
        assert usage(wire, "1")["pids"] >= 1
    wire.send("cancel", execution="1")
    wire.finished("1")
    assert set(wire.user_processes()) == set(observers(wire))


def test_names_that_look_like_process_tables_are_only_names(wire: Conversation) -> None:
    code = "open('/proc/self/comm', 'w').write(') R 1 1 1 (')\nprint('.', flush=True)\nimport time; time.sleep(1000)"
    wire.python("1", code, context=None)
    begun(wire, "1")
    found = usage(wire, "1")
    assert found["pids"] == 1
    assert found["memory_bytes"] > 0


# -- bytes at the end


def test_an_interpreter_tells_what_it_read_and_wrote(wire: Conversation) -> None:
    code = "f = open('f', 'wb'); f.write(bytes(700_000)); f.close(); len(open('f', 'rb').read())"
    for name, context in (("1", "default"), ("2", "default"), ("3", None)):
        wire.python(name, code, context=context)
        used = wire.finished(name)["usage"]
        assert 700_000 <= used["io_write_bytes"] < 800_000
        assert 700_000 <= used["io_read_bytes"] < 900_000


# -- awaited input


@pytest.mark.parametrize(
    "program",
    ["import sys; sys.stdin.readline()", "input()", "import os; os.read(0, 1)"],
)
@pytest.mark.parametrize("context", ["default", None])
def test_a_program_that_reads_what_nobody_sends_is_noticed(
    wire: Conversation, program: str, context: str | None
) -> None:
    wire.python("1", f"print('.', flush=True)\n{program}\n{program}\n{WAIT}", context=context, stdin=True)
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    wire.send("stdin", b"one\n", execution="1", offset=0)
    assert not waiting(wire, "1")
    if program != "import os; os.read(0, 1)":
        assert waiting(wire, "1")
        wire.send("stdin", b"two\n", execution="1", offset=4)
        assert not waiting(wire, "1")
    wire.send("end_of_input", execution="1")
    wire.send("cancel", execution="1")
    wire.finished("1")


@pytest.mark.parametrize(
    "command", ["cat", "read x", "sh -c 'cat | cat'", "head -c 1", "python3 -c 'input()'", "sort", "read -t 500 x"]
)
def test_a_command_that_reads_what_nobody_sends_is_noticed(wire: Conversation, command: str) -> None:
    wire.shell("1", command, stdin=True)
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    wire.send("end_of_input", execution="1")
    assert not waiting(wire, "1")
    wire.finished("1")


@pytest.mark.parametrize(
    "command",
    [
        "sleep 1000",
        "x=$(sleep 1000)",
        "sleep 1000 | cat",
        "while :; do :; done",
        "python3 -c 'import select; select.select([], [], [], 1000)'",
        "python3 -c 'import threading; threading.Event().wait()'",
        "python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 0)).accept()'",
        "exec 0<&-; sleep 1000",
    ],
)
def test_a_program_that_waits_for_something_else_is_not(wire: Conversation, command: str) -> None:
    wire.shell("other", command, stdin=True)
    wire.shell("reader", "cat", stdin=True)
    wire.send("watch_input", execution="other")
    wire.send("watch_input", execution="reader")
    for _ in range(2):  # by the time that a reader is noticed the other has been looked at, too
        assert waiting(wire, "reader")
        wire.send("stdin", b"x", execution="reader", offset=_)
        assert not waiting(wire, "reader")
    assert waiting(wire, "reader")
    assert [notice for notice in wire.said("awaiting_input") if notice["execution"] == "other"] == []


def test_input_that_waits_to_be_read_is_no_lack_of_it(wire: Conversation) -> None:
    wire.shell("1", "sleep 1000", stdin=True)
    wire.send("stdin", b"unread", execution="1", offset=0)
    wire.shell("reader", "cat", stdin=True)
    for execution in ("1", "reader"):
        wire.send("watch_input", execution=execution)
    assert waiting(wire, "reader")
    assert [notice["execution"] for notice in wire.said("awaiting_input")] == []


def test_a_program_that_stops_waiting_by_itself_is_noticed(wire: Conversation) -> None:
    wire.shell("1", "read -t 1.5 x; sleep 1000", stdin=True)
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    assert not waiting(wire, "1")


def test_a_daemon_that_is_back_hears_again_what_waits(wire: Conversation) -> None:
    wire.shell("1", "cat", stdin=True)
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    wire.connection.close()
    wire.accept()
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")


def test_nobody_is_told_who_has_not_asked(wire: Conversation) -> None:
    wire.shell("unwatched", "cat", stdin=True)
    wire.shell("watched", "cat", stdin=True)
    wire.send("watch_input", execution="watched")
    assert waiting(wire, "watched")
    assert wire.said("awaiting_input") == []


# -- the observer among hostile programs


def attack(wire: Conversation, how: str) -> None:
    """Does something to the observer again and again, in an execution of its own."""
    code = f"""
import os, resource, signal, time
print(".", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                if b"--template" in open("/proc/" + name + "/cmdline", "rb").read():
                    pid = int(name)
                    {how}
            except (OSError, ValueError):
                pass
"""
    wire.python("attack", code, context=None)
    begun(wire, "attack")


ATTACKS = [
    "os.kill(pid, signal.SIGKILL)",
    "os.kill(pid, signal.SIGSTOP)",
    "os.kill(pid, signal.SIGTERM)",
    "resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))",
    "open('/proc/%d/mem' % pid, 'r+b')",
]


@pytest.mark.parametrize("how", ATTACKS)
def test_samples_come_whatever_is_done_to_the_observer(wire: Conversation, how: str) -> None:
    wire.shell("1", "echo .; exec sleep 1000")
    begun(wire, "1")
    usage(wire, "1")
    attack(wire, how)
    for _ in range(60):
        assert usage(wire, "1")["pids"] == 1
    wire.send("cancel", execution="attack")
    wire.finished("attack")
    wire.send("cancel", execution="1")
    assert wire.finished("1")["cause"] == "cancel"


def test_an_observer_that_was_killed_is_replaced(wire: Conversation) -> None:
    wire.shell("1", "echo .; exec sleep 1000")
    begun(wire, "1")
    usage(wire, "1")
    (first,) = observers(wire)
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while not set(observers(wire)) - {first}:
        assert time.monotonic() < deadline
        usage(wire, "1")


def test_an_observer_that_hangs_is_replaced(wire: Conversation) -> None:
    wire.shell("1", "cat", stdin=True)
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    (first,) = observers(wire)
    os.kill(first, signal.SIGSTOP)
    wire.send("stdin", b"x", execution="1", offset=0)
    assert not waiting(wire, "1")
    assert waiting(wire, "1")
    assert first not in observers(wire)


def test_there_is_no_observer_until_it_is_needed(wire: Conversation) -> None:
    wire.shell("1", "cat", stdin=True)
    wire.send("end_of_input", execution="1")
    wire.finished("1")
    wire.shell("2", "true")
    wire.finished("2")
    assert observers(wire) == []


def test_one_observer_serves_all_and_outlives_them(wire: Conversation) -> None:
    for number in range(20):
        wire.shell(f"{number}", "echo .; sleep 1000")
        begun(wire, f"{number}")
        usage(wire, f"{number}")
    (observer,) = observers(wire)
    for number in range(20):
        wire.send("cancel", execution=f"{number}")
        wire.finished(f"{number}")
    assert observers(wire) == [observer]
    assert set(wire.user_processes()) == {observer}


def test_parking_ends_the_observer_and_does_not_count_it(wire: Conversation) -> None:
    wire.shell("1", "echo .; exec sleep 1000")
    begun(wire, "1")
    usage(wire, "1")
    assert len(observers(wire)) == 1
    parked: Header = wire.ask("park")
    assert parked["killed"] == 1
    assert wire.user_processes() == {}
    wire.shell("2", "echo .; exec sleep 1000")
    begun(wire, "2")
    assert usage(wire, "2")["pids"] == 1


# -- disks


@pytest.mark.parametrize(
    ("options", "code", "full"),
    [
        ("size=256k", "pass", 0),
        ("size=256k", "while f.write(bytes(4096)): f.flush()", 1),
        ("size=256k", "os.write(f.fileno(), bytes(300_000)); os.truncate(f.name, 0)", 0),
        ("nr_inodes=20", "[open(f'{folder}/{number}', 'w') for number in range(100)]", 1),
    ],
)
def test_file_systems_that_are_full_at_the_end_are_counted(options: str, code: str, full: int) -> None:
    folder = tempfile.mkdtemp(dir="/tmp")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},uid={UID}", "tmpfs", folder], check=True)
    try:
        with conversation(scratch_dirs=(folder, folder)) as wire:
            wire.python("1", f"import os\nfolder = {folder!r}\nf = open(folder + '/f', 'wb', buffering=0)\n" + code)
            assert wire.finished("1")["disks_full"] == full
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)


# -- terminals


@pytest.mark.parametrize(
    "command", ["cat", "read x", "bash -i", "python3 -i", "stty raw; cat", "sh -c 'cat </dev/tty'", "top"]
)
def test_a_program_at_a_terminal_that_waits_for_keys_is_noticed(wire: Conversation, command: str) -> None:
    wire.shell("1", command, terminal=[24, 80])
    wire.send("watch_input", execution="1")
    assert waiting(wire, "1")
    wire.send("stdin", b"q", execution="1", offset=0)
    assert not waiting(wire, "1")
    wire.send("cancel", execution="1")
    wire.finished("1")


@pytest.mark.parametrize("command", ["sleep 1000", "sleep 1000 | cat", "script -qc 'sleep 1000' /dev/null"])
def test_a_program_at_a_terminal_that_waits_for_something_else_is_not(wire: Conversation, command: str) -> None:
    wire.shell("other", command, terminal=[24, 80])
    wire.shell("reader", "cat", terminal=[24, 80])
    for execution in ("other", "reader"):
        wire.send("watch_input", execution=execution)
    assert waiting(wire, "reader")
    wire.send("stdin", b"x\n", execution="reader", offset=0)
    assert not waiting(wire, "reader")
    assert waiting(wire, "reader")
    assert [notice for notice in wire.said("awaiting_input") if notice["execution"] == "other"] == []
