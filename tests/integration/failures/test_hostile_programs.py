"""Hostile programs in a real sandbox, over the SDK: each is contained, and the sandbox and its neighbour go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import ExecutionStatus, SandboxType, ToolResult

from enclaved.agent.guest.frames import encode_frame
from tests.integration.failures.ground import DaemonProcess

COUNT = """
import contextlib, os
count = 0
for name in os.listdir("/proc"):
    with contextlib.suppress(OSError):  # it has just ended
        count += name.isdigit() and os.stat(f"/proc/{name}").st_uid != 0
print(count)
"""
"""Counts the processes that are not the guest's."""
LIMITS = {"memory_limit": "128m", "resource_limits": {"pids_limit": 64}}


@pytest.fixture(scope="module")
def pair(manager: LocalSandboxManager) -> Iterator[tuple[Sandbox, Sandbox]]:
    """The sandbox in which hostile programs run, and its neighbour on the same daemon."""

    async def make() -> Any:
        ids = [await manager.create_sandbox(SandboxType.DOCKER, LIMITS) for _ in range(2)]
        return tuple([await manager.get_sandbox(sandbox_id) for sandbox_id in ids])

    return asyncio.run(make())


@pytest.fixture
async def neighbour(pair: tuple[Sandbox, Sandbox]) -> AsyncIterator[Sandbox]:
    """The neighbour, which keeps its variables and files whatever is done next door."""
    _, found = pair
    await found.execute_tool("python_executor", {"code": "kept = 42; open('/tmp/secret', 'w').write('s3cret')"})
    yield found
    result = await found.execute_tool("python_executor", {"code": "print(kept, open('/tmp/secret').read())"})
    assert result.output == "42 s3cret\n", f"the neighbour was harmed: {result}"


@pytest.fixture
async def cell(pair: tuple[Sandbox, Sandbox], neighbour: Sandbox) -> AsyncIterator[Sandbox]:
    """The sandbox of the hostile programs. After each it is empty of processes, and works."""
    found, _ = pair
    yield found
    result = await found.execute_tool("python_executor", {"code": "print(6 * 7)"})
    assert (result.output, result.error) == ("42\n", None), f"it does not work any more: {result}"
    result = await found.execute_tool("shell_executor", {"command": ["python3", "-c", COUNT]})
    assert int(result.output) <= 8, f"something outlived its execution: {result.output}"
    result = await found.execute_command("echo written > /tmp/proof && cat /tmp/proof && rm /tmp/proof")
    assert result.stdout == "written\n", f"it cannot write any more: {result}"


async def run(cell: Sandbox, code: str, timeout: float = 20) -> ToolResult:
    """Runs a program in an interpreter of its own."""
    return await cell.execute_tool("python_executor", {"code": code, "isolated": True, "timeout": timeout})


# -- what cannot be done -----------------------------------------------------------------------------------------

ATTEMPTS = """
import ctypes, errno, fcntl, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def syscall(number, *arguments):
    call("syscall", number, *arguments)

def reads(path):
    with open(path, "rb") as file:
        return file.read(1) or missing(path)  # masked files are there, and empty

def missing(path):
    raise OSError(errno.ENOENT, "empty")

def writes(path):
    os.write(os.open(path, os.O_WRONLY), b"1")

def connects(path):
    socket.socket(socket.AF_UNIX).connect(path)

found = {}
def attempt(name, act):
    try:
        found[name] = f"succeeded: {act()!r}"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]

for name, act in ACTS.items():
    attempt(name, act)
print(json.dumps(found))
"""

GUEST = """{
    "environ": lambda: reads("/proc/1/environ"),
    "memory": lambda: reads("/proc/1/mem"),
    "maps": lambda: reads("/proc/1/maps"),
    "descriptors": lambda: os.listdir("/proc/1/fd"),
    "root": lambda: os.listdir("/proc/1/root/"),
    "working directory": lambda: os.listdir("/proc/1/cwd/"),
    "trace": lambda: call("ptrace", 16, 1, 0, 0),
    "peek": lambda: syscall(310, 1, 0, 0, 0, 0, 1),
    "kill": lambda: os.kill(1, 9),
    "stop": lambda: os.kill(1, 19),
    "its priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    "its limits": lambda: __import__("resource").prlimit(1, 7, (0, 0)),
    "its oom score": lambda: writes("/proc/1/oom_score_adj"),
    "its socket": lambda: connects("/run/enclave/socket/agent.sock"),
    "in place of its socket": lambda: os.unlink("/run/enclave/socket/agent.sock"),
    "beside its socket": lambda: os.symlink("/tmp", "/run/enclave/socket/x"),
    "its file": lambda: writes("/run/enclave/guest.py"),
}"""
SYSTEM = """{
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "bind": lambda: call("mount", b"/proc", b"/tmp", None, 4096, None),
    "unmount": lambda: call("umount2", b"/sandbox", 2),
    "new user namespace": lambda: call("unshare", 0x10000000),
    "new mount namespace": lambda: call("unshare", 0x00020000),
    "namespace of the guest": lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "chroot": lambda: os.chroot("/tmp"),
    "block device": lambda: os.mknod("/tmp/disk", 0o060600, os.makedev(8, 0)),
    "memory device": lambda: os.mknod("/tmp/mem", 0o020600, os.makedev(1, 1)),
    "become root": lambda: os.setuid(0),
    "become another": lambda: os.setresuid(1000, 1000, 1000),
    "take a group": lambda: os.setgroups([0]),
    "kernel log": lambda: reads("/dev/kmsg"),
    "kernel log by call": lambda: call("klogctl", 3, ctypes.create_string_buffer(10), 10),
    "physical memory": lambda: reads("/dev/mem"),
    "kernel memory": lambda: reads("/proc/kcore"),
    "disk": lambda: reads("/dev/sda"),
    "sysrq": lambda: writes("/proc/sysrq-trigger"),
    "core pattern": lambda: writes("/proc/sys/kernel/core_pattern"),
    "kernel modules": lambda: writes("/sys/module/kernel/parameters/panic"),
    "control groups": lambda: os.mkdir("/sys/fs/cgroup/memory/x"),
    "host name": lambda: socket.sethostname("mine"),
    "clock": lambda: __import__("time").clock_settime(0, 0),
    "reboot": lambda: call("reboot", 0x01234567),
    "load a module": lambda: syscall(313, -1, b"", 0),
    "program the kernel": lambda: syscall(321, 0, 0, 0),
    "keyring": lambda: syscall(248, b"user", b"a", b"b", 1, -3),
    "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "raw internet": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "open by handle": lambda: syscall(304, -100, ctypes.create_string_buffer(24), 0),
    "engine's socket": lambda: connects("/var/run/docker.sock"),
    "system file": lambda: writes("/etc/passwd"),
    "system directory": lambda: os.mkdir("/usr/mine"),
    "root directory": lambda: os.mkdir("/mine"),
}"""
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS"}


@pytest.mark.parametrize("acts", [GUEST, SYSTEM], ids=["to the guest", "to the system"])
async def test_what_a_program_may_not_do_is_refused_by_the_kernel(cell: Sandbox, acts: str):
    result = await run(cell, ATTEMPTS.replace("ACTS", acts))
    assert result.success, result.error
    found = json.loads(result.output)
    assert len(found) > 15
    assert {name: said for name, said in found.items() if said not in REFUSED} == {}


async def test_a_program_has_no_privilege_and_no_way_to_one(cell: Sandbox):
    code = """
import os, shutil, subprocess
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print([int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")],
      status["NoNewPrivs"].strip(), status["Seccomp"].strip(), status["Groups"].strip() or "no groups")
shutil.copy("/usr/bin/id", "/tmp/id")
os.chmod("/tmp/id", 0o6755)
print(subprocess.run(["/tmp/id", "-u"], capture_output=True, text=True).stdout.strip() == str(os.getuid()))
print(subprocess.run(["su", "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10).returncode)
os.remove("/tmp/id")
"""
    result = await run(cell, code)
    assert result.success, result.error
    *lines, su = result.output.splitlines()
    assert (lines, su != "0") == (["[0, 0, 0, 0] 1 2 no groups", "True"], True)


async def test_there_is_no_network_but_the_loopback(cell: Sandbox):
    code = """
import socket
print([name for _, name in socket.if_nameindex()])
print(open("/proc/net/route").read().count("\\n"))
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    print("the loopback works")
"""
    result = await run(cell, code)
    assert result.success, result.error
    assert result.output.splitlines() == ["['lo']", "1", "the loopback works"]


async def test_neither_files_nor_processes_of_another_sandbox_are_to_be_seen(cell: Sandbox, neighbour: Sandbox):
    code = """
import os
owners = {os.stat(f"/proc/{name}").st_uid for name in os.listdir("/proc") if name.isdigit()}
print(sorted(owners - {0}) == [os.getuid()], os.path.exists("/tmp/secret"))
found = [path for top in ("/sandbox", "/tmp", "/dev/shm", "/run", "/var") for path, _, names in os.walk(top)
         for name in names if name == "secret"]
print(found)
"""
    result = await run(cell, code)
    assert result.output == "True False\n[]\n"
    assert (await cell.refresh()).metadata["uid"] != (await neighbour.refresh()).metadata["uid"]


# -- what can be exhausted ---------------------------------------------------------------------------------------


async def test_a_fork_bomb_ends_with_its_timeout_and_the_neighbour_does_not_notice(cell: Sandbox, neighbour: Sandbox):
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    bombing = asyncio.create_task(run(cell, bomb, timeout=2))
    answers = [(await neighbour.execute_tool("python_executor", {"code": f"print({n})"})).output for n in range(3)]
    assert answers == ["0\n", "1\n", "2\n"]
    result = await bombing
    assert (result.status, result.metadata["verdict"]) == (ExecutionStatus.TIMEOUT, "TIMEOUT")
    assert result.metadata["limits_hit"]["pids"] > 0


async def test_a_fork_bomb_of_the_shell_is_no_different(cell: Sandbox):
    result = await cell.execute_tool(
        "bash", {"command": "bomb() { bomb | bomb & }; bomb; wait; sleep 60", "timeout": 2}
    )
    assert result.status in (ExecutionStatus.TIMEOUT, ExecutionStatus.ERROR)


async def test_memory_taken_by_a_child_kills_the_child_and_the_result_says_so(cell: Sandbox):
    code = """
import os
if (child := os.fork()) == 0:
    hoard = [bytearray(1024 * 1024) for _ in range(4096)]
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = await run(cell, code)
    assert (result.output, result.metadata["verdict"]) == ("-9\n", "EXITED")
    assert result.metadata["limits_hit"]["memory"] > 0


async def test_every_place_to_write_ends_at_its_limit_of_bytes_and_of_files(cell: Sandbox):
    code = """
import errno, os
for place in ("/sandbox", "/tmp", "/dev/shm"):
    folder = os.path.join(place, "ballast")
    os.mkdir(folder)
    made = 0
    try:
        while True:
            os.close(os.open(os.path.join(folder, str(made)), os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        print(errno.errorcode[error.errno], 500 < made < 100_000)
    for number in range(made):
        os.remove(os.path.join(folder, str(number)))
    size = 0
    try:
        with open(os.path.join(folder, "large"), "wb", buffering=0) as file:
            while True:
                size += file.write(bytes(65536))
    except OSError as error:
        # One file may be no larger than the larger of the disks.
        print(errno.errorcode[error.errno].replace("EFBIG", "ENOSPC"), size < 128 * 1024**2)
    os.remove(os.path.join(folder, "large"))
    os.rmdir(folder)
"""
    result = await run(cell, code)
    assert result.output.splitlines() == ["ENOSPC True", "ENOSPC True"] * 3, result.error


async def test_descriptors_and_threads_end_at_their_limits(cell: Sandbox):
    code = """
import errno, os, threading
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError as error:
    print(errno.errorcode[error.errno], len(held) < 1100)
for one in held:
    os.close(one)
go = threading.Event()
count = 0
try:
    while True:
        threading.Thread(target=go.wait, daemon=True).start()
        count += 1
except RuntimeError:
    print(count < 64)
go.set()
"""
    result = await run(cell, code)
    assert result.output == "EMFILE True\nTrue\n", result.error


# -- what does not want to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "in the context"])
async def test_a_program_that_ignores_every_signal_ends_at_its_timeout(cell: Sandbox, isolated: bool):
    code = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    pass
"""
    result = await cell.execute_tool("python_executor", {"code": code, "isolated": isolated, "timeout": 1})
    assert (result.status, result.error) == (ExecutionStatus.TIMEOUT, "Command timed out after 1 seconds")


async def test_detached_children_do_not_outlive_their_execution(cell: Sandbox):
    code = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            for fd in range(3):
                os.close(fd)
            time.sleep(600)
        os._exit(0)
print("left them")
"""
    result = await run(cell, code)
    assert (result.output, result.metadata["verdict"]) == ("left them\n", "EXITED")


async def test_killing_everything_kills_only_what_is_ones_own(cell: Sandbox):
    result = await run(cell, "import os, signal; os.kill(-1, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)")
    assert (result.metadata["verdict"], result.metadata["signal"]) == ("SIGNALED", 9)
    result = await cell.execute_tool("bash", {"command": "kill -9 -1; kill -9 $$"})
    assert (result.metadata["verdict"], result.metadata["signal"]) == ("SIGNALED", 9)


async def test_a_stopped_process_group_is_no_way_to_stay(cell: Sandbox):
    result = await run(cell, "import os, signal; os.fork(); os.kill(os.getpid(), signal.SIGSTOP)", timeout=1)
    assert result.status is ExecutionStatus.TIMEOUT


# -- what lies ---------------------------------------------------------------------------------------------------


async def test_a_forged_frame_on_any_descriptor_is_at_most_output(cell: Sandbox):
    forged = encode_frame({"type": "finished", "execution": "0" * 32, "exit_code": 0, "attested": True})
    code = f"""
import os, sys
frame = {forged!r}
for fd in range(256):
    try:
        os.write(fd, frame)
    except OSError:
        pass
sys.exit(3)
"""
    result = await run(cell, code)
    # Who talks nonsense to the guest is killed, unless its own end comes first. Either is what the kernel says.
    end = tuple(result.metadata[name] for name in ("verdict", "exit_code", "signal", "attested"))
    assert end in (("EXITED", 3, None, True), ("SIGNALED", None, 9, True))
    assert result.output == forged.decode("utf-8", "replace")


async def test_terminal_escapes_and_imitated_log_lines_stay_in_the_output(cell: Sandbox, daemon: DaemonProcess):
    lie = '{"time": "2026-01-01", "level": "error", "event": "the sky fell"}'
    code = f"print('\\x1b]0;title\\x07\\x1b[2J\\x1b[31mred'); print({lie!r}); raise RuntimeError('\\x1b[1m\\nevent')"
    result = await run(cell, code)
    assert result.output == f"\x1b]0;title\x07\x1b[2J\x1b[31mred\n{lie}\n"
    assert result.metadata["verdict"] == "EXCEPTION"
    assert "\x1b" not in daemon.text
    assert "the sky fell" not in daemon.text


async def test_a_program_that_closes_and_replaces_descriptors_harms_only_itself(cell: Sandbox):
    for isolated in (True, False):
        code = "import os; os.closerange(0, 1024)"
        result = await cell.execute_tool("python_executor", {"code": code, "isolated": isolated, "timeout": 5})
        assert result.metadata["verdict"] in ("EXITED", "EXCEPTION", "SIGNALED"), result
