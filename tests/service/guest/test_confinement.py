"""The filter of system calls and the scope of signals, as programs of a real guest meet them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from enclaved.agent.install import bundled_guest
from tests.service.guest.laboratory import PATIENCE_S
from tests.service.guest.wire import WireGuest, wire_guest

REPORT = """
import ctypes, errno, json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
library = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    return [library.syscall(number, 0, 0, 0, 0), errno.errorcode.get(ctypes.get_errno())]
def family(number):
    try:
        socket.socket(number, socket.SOCK_DGRAM).close()
    except OSError as error:
        return errno.errorcode[error.errno]
def signal(pid):
    try:
        os.kill(pid, 0)
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    "no_new_privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "io_uring_setup": call(425), "vsock": family(40), "unix": family(1), "guest": signal(1), "itself": signal(0),
}))
"""
EXPECTED = {
    "no_new_privileges": "1",
    "seccomp": "2",
    "io_uring_setup": [-1, "EPERM"],
    "vsock": "EPERM",
    "unix": None,
    "guest": "EPERM",
    "itself": None,
}


async def report(guest: WireGuest, context: str | None) -> object:
    run = guest.python(REPORT, context=context)
    assert (await guest.end(run))["exit_code"] == 0, run.output(2)
    return json.loads(run.output())


@pytest.mark.parametrize("context", [None, "default"])
async def test_every_python_program_is_confined(context: str | None) -> None:
    async with wire_guest() as guest:
        assert await report(guest, context) == EXPECTED


async def test_commands_and_what_they_start_are_confined() -> None:
    async with wire_guest() as guest:
        run = guest.shell("sh -c 'grep ^Seccomp: /proc/self/status; (setsid grep ^NoNewPrivs: /proc/self/status)'")
        await guest.end(run)
        assert run.output().decode().split() == ["Seccomp:", "2", "NoNewPrivs:", "1"]


async def test_an_execution_can_signal_the_program_of_another_one_of_its_sandbox() -> None:
    async with wire_guest() as guest:
        first = guest.shell("echo $$; exec sleep 600")
        await guest.written(first, b"\n")
        second = guest.shell(f"kill -TERM {first.output().decode().strip()}")
        assert (await guest.end(second))["exit_code"] == 0
        assert (await guest.end(first))["signal"] == 15


async def test_a_program_that_calls_the_kernel_in_another_way_is_killed() -> None:
    code = "import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)"  # getpid of x32
    async with wire_guest() as guest:
        run = guest.python(code)
        assert (await guest.end(run))["signal"] == 31


async def test_where_the_kernel_takes_no_filter_nothing_is_run() -> None:
    def ask_for_another_option(source: str) -> str:
        assert source.count("PR_SET_SECCOMP = 22") == 1
        return source.replace("PR_SET_SECCOMP = 22", "PR_SET_SECCOMP = 9999")

    async with wire_guest(change=ask_for_another_option) as guest:
        run = guest.shell("echo ran")
        await guest.until(lambda: run.last("refused"))
        refused = run.last("refused")
        assert refused is not None
        assert refused["code"] == "no_process"
        assert "its programs cannot be confined: [Errno 22] prctl(PR_SET_SECCOMP)" in refused["message"]
        assert run.output() == b""


async def test_on_a_machine_without_a_table_the_guest_ends_and_says_why(tmp_path: Path) -> None:
    source = bundled_guest().decode()
    assert source.count('MACHINES = ("x86_64", "aarch64")') == 1
    guest = tmp_path / "guest.py"
    guest.write_text(source.replace('MACHINES = ("x86_64", "aarch64")', 'MACHINES = ("z80",)'))
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/python3", str(guest), "--child", "/nonexistent", "{}"), stderr=asyncio.subprocess.PIPE
    )
    _, words = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 1
    assert words.decode().startswith("guest: there is no table of system calls for a ")
