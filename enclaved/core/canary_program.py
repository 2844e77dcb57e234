"""What a program in a sandbox sees and can do, as such a program tells it. Its text runs in the canary.

Standard library only, Python 3.8 and newer. Nothing here hurts: what should be refused is tried in children that end.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

PTRACE_TRACEME = 0
ADDR_NO_RANDOMIZE = 0x0040000
AF_VSOCK = 40
# What Docker's own filter refuses and ours lets through, so that it is the engine's filter that refuses it: numbers on
# x86-64 and on arm64. Without a filter the kernel does it, or calls the arguments wrong.
NUMBERS_ONLY_THE_ENGINE_REFUSES = {
    "get_mempolicy": (239, 236),
    "set_mempolicy": (238, 237),
    "mbind": (237, 235),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
}
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_SCOPES = 3
LANDLOCK_LAYERS_MOST = 16
STATUS_FIELDS = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters")
LIMITS = {"nofile": "Max open files", "fsize": "Max file size", "core": "Max core file size"}
TELLING = ("/proc/cmdline", "/proc/interrupts", "/proc/timer_list", "/proc/keys", "/proc/sched_debug")
TELLING_FOLDERS = (
    *("/sys/block", "/sys/bus", "/sys/class", "/sys/dev", "/sys/firmware"),
    *("/sys/fs", "/sys/kernel", "/sys/module", "/sys/power", "/proc/acpi", "/proc/scsi"),
)
HELD_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def text_of(path: str) -> str:
    """A small file; empty where it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def status(pid: str) -> dict[str, list[str]]:
    """What the kernel says of a process."""
    found = {}
    for line in text_of(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        if name in STATUS_FIELDS or name.startswith("Cap"):
            found[name] = value.split()
    return found


def refusal(work: Callable[[], Any]) -> str:
    """The name of the error with which the kernel refuses something; empty if it does it. Tried in a child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            answer = ""
        except OSError as error:
            answer = errno.errorcode.get(error.errno or 0, str(error.errno))
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    _, end = os.waitpid(pid, 0)
    return answer if end == 0 else f"status {end}"


def call(function: Any, *arguments: Any) -> int:
    """Calls a function of the C library. Raises OSError where it says that it failed."""
    ctypes.set_errno(0)
    outcome = function(*arguments)
    if outcome == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(outcome)


def refusals_of_the_engine() -> dict[str, str]:
    """What becomes of calls that only the engine's filter refuses."""
    libc.syscall.restype = ctypes.c_long
    column = 0 if os.uname().machine == "x86_64" else 1
    nothing = [ctypes.c_long(0)] * 6
    found = {"personality": refusal(lambda: call(libc.personality, ctypes.c_ulong(ADDR_NO_RANDOMIZE)))}
    for name, numbers in NUMBERS_ONLY_THE_ENGINE_REFUSES.items():
        number = ctypes.c_long(numbers[column])
        found[name] = refusal(functools.partial(call, libc.syscall, number, *nothing))
    return found


def landlock_layers() -> int:
    """How many layers of Landlock a process of ours can still add; -1 where there is no Landlock with scopes."""
    libc.syscall.restype = ctypes.c_long
    nothing = ctypes.c_size_t(0)
    if libc.syscall(LANDLOCK_CREATE_RULESET, None, nothing, 1) < 6:
        return -1
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        attributes = struct.pack("=QQQ", 0, 0, LANDLOCK_SCOPES)
        added = 0
        while added <= LANDLOCK_LAYERS_MOST:
            ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
            if ruleset < 0 or libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
                break
            added += 1
        os.write(writing, b"%d" % added)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return int(answer or -1)


def mounts() -> list[dict[str, str]]:
    """Every mount that another does not hide: what of it is mounted where, how, and of which type."""
    found: list[dict[str, str]] = []
    for line in text_of("/proc/self/mountinfo").splitlines():
        fields, _, more = line.partition(" - ")
        parts = fields.split()
        if len(parts) > 5:
            point = parts[4]
            hidden = point.rstrip("/") + "/"
            found = [one for one in found if not (one["point"] + "/").startswith(hidden)]
            found.append({"root": parts[3], "point": point, "options": parts[5], "type": more.split(" ")[0]})
    return found


def room(path: str) -> dict[str, int]:
    """How large a file system is, and how it may be used."""
    found = os.statvfs(path)
    return {"bytes": found.f_blocks * found.f_frsize, "files": found.f_files, "flags": found.f_flag}


def devices() -> list[str]:
    """The devices in /dev and below."""
    found = []
    for folder, _, names in os.walk("/dev"):
        if folder not in ("/dev/pts", "/dev/shm", "/dev/mqueue"):
            for name in names:
                path = os.path.join(folder, name)
                mode = os.lstat(path).st_mode
                if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                    found.append(path[5:])
    return sorted(found)


def telling() -> list[str]:
    """What says something of the host and should not."""
    found = [path for path in TELLING if text_of(path)]
    for path in TELLING_FOLDERS:
        try:
            if os.listdir(path):
                found.append(path)
        except OSError:
            pass
    held = [path for path in HELD_READ_ONLY if os.path.exists(path)]
    return found + [f"{path} (can be written to)" for path in held if not os.statvfs(path).f_flag & os.ST_RDONLY]


def limits_of_guest() -> dict[str, str]:
    """The limits of PID 1."""
    found = {}
    for line in text_of("/proc/1/limits").splitlines():
        for name, words in LIMITS.items():
            if line.startswith(words):
                found[name] = line[len(words) :].split()[1]
    return found


def processes_until_refused(most: int) -> int:
    """How many children there can be at once, up to ``most``."""
    children: list[int] = []
    try:
        while len(children) < most:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(children)


def is_killed_beyond(size: int) -> bool:
    """Whether a child that uses so much memory is killed."""
    pid = os.fork()
    if pid == 0:
        with mmap.mmap(-1, size) as memory:
            for offset in range(0, size, mmap.PAGESIZE):
                memory[offset] = 1
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Everything, as one document."""
    uid = os.getuid()
    names = {"nofile": resource.RLIMIT_NOFILE, "fsize": resource.RLIMIT_FSIZE, "core": resource.RLIMIT_CORE}
    found = {
        "program": status("self"),
        "guest": status("1"),
        "refusals": {
            "becoming root": refusal(lambda: os.setresuid(0, 0, 0)),
            "becoming another user": refusal(lambda: os.setresuid(uid + 1, uid + 1, uid + 1)),
            "ptrace": refusal(lambda: call(libc.ptrace, PTRACE_TRACEME, 0, 0, 0)),
            "vsock": refusal(lambda: socket.socket(AF_VSOCK, socket.SOCK_STREAM).close()),
            "unix": refusal(lambda: socket.socket(socket.AF_UNIX).close()),
            "signal": refusal(lambda: os.kill(1, 0)),
        },
        "engine_refusals": refusals_of_the_engine(),
        "landlock_layers": landlock_layers(),
        "limits": {name: resource.getrlimit(number)[1] for name, number in names.items()},
        "guest_limits": limits_of_guest(),
        "oom": [text_of(f"/proc/{pid}/oom_score_adj").strip() for pid in ("self", "1")],
        "mounts": mounts(),
        "rooms": {path: room(path) for path in asked["rooms"]},
        "interfaces": [name for _, name in socket.if_nameindex()],
        "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")},
        "telling": telling(),
        "devices": devices(),
        "uid_map": text_of("/proc/self/uid_map").split(),
        "label": text_of("/proc/self/attr/current").strip("\0\n "),
        "swap": [line.split()[1] for line in text_of("/proc/meminfo").splitlines() if line.startswith("SwapTotal:")],
    }
    if asked["exhaust"]:
        found["processes"] = processes_until_refused(asked["processes"])
        found["killed_for_memory"] = is_killed_beyond(asked["memory"])
    return found


def tell(asked: dict[str, Any]) -> None:
    """Writes everything to standard output."""
    json.dump(look(asked), sys.stdout)
