"""Exhausting what is shared. Every program ends by itself at a bound that a machine without limits survives."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks.base import MIB, Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import all_of, ends, lets_go, nothing_left, refuses, stays_below, still_works

MEMORY_BYTES: Final = 256 * MIB
"""Memory of the sandboxes in which attacks run; their other limits follow."""
WORKING_DIR_BYTES: Final = 32 * MIB
TMP_BYTES: Final = 16 * MIB
PIDS: Final = 96
CPUS: Final = 1.0


def _attack(name: str, sentence: str, source: str, judge: Judge, *, alone: bool = False) -> Attack:
    return Attack(
        f"resources.{name}",
        Category.RESOURCES,
        sentence,
        all_of(judge, still_works()),
        Program(source, timeout_s=30),
        looks_for_processes=True,
        alone=alone,
    )


def _keeps(name: str, one: str) -> str:
    """A program that makes 400 of something and holds on to them for 5 s."""
    return f"""
import socket
kept = []
try:
    for _ in range(400):
        kept.append({one})
except OSError:
    pass
tell({name!r}, len(kept))
sys.stdout.flush()
time.sleep(5)
tell("kept", True)
"""


ATTACKS: Final = (
    _attack(
        "fork-bomb",
        "Forks as fast as it can, 400 times at most.",
        """
import signal
made = 0
for _ in range(400):
    try:
        child = os.fork()
    except OSError:
        break
    if not child:
        signal.alarm(15)
        while True:
            signal.pause()
    made += 1
tell("processes", made)
os._exit(0)
""",
        all_of(stays_below("processes", PIDS), nothing_left()),
    ),
    _attack(
        "threads",
        "Starts threads, 400 at most.",
        """
import threading
threading.stack_size(64 * 1024)
end = threading.Event()
made = 0
for _ in range(400):
    try:
        threading.Thread(target=end.wait, args=(20,), daemon=True).start()
    except RuntimeError:
        break
    made += 1
tell("threads", made)
end.set()
os._exit(0)
""",
        stays_below("threads", PIDS),
    ),
    _attack(
        "memory",
        "Takes 640 MiB of memory in a child.",
        """
reader, writer = os.pipe()
child = os.fork()
if not child:
    pieces = []
    for number in range(40):
        pieces.append(b"x" * (16 << 20))
        os.write(writer, b"x")
    os._exit(0)
os.close(writer)
os.waitpid(child, 0)
got = 0
while True:
    piece = os.read(reader, 4096)
    if not piece:
        break
    got += len(piece)
tell("MiB", got * 16)
""",
        stays_below("MiB", MEMORY_BYTES / MIB),
    ),
    _attack(
        "memory-of-the-leader",
        "Takes 640 MiB of memory itself, so that the kernel ends it; the verdict must say so.",
        """
pieces = []
for number in range(40):
    pieces.append(b"x" * (16 << 20))
tell("done", True)
""",
        ends("OUT_OF_MEMORY", attested=True),
    ),
    _attack(
        "disk",
        "Fills every place that can be written to, with 96 MiB each at most.",
        """
places = {"work": ".", "tmp": "/tmp", "shm": "/dev/shm"}
total = 0
for name, place in places.items():
    path = os.path.join(place, "fill-" + NONCE)
    got = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while got < 96 << 20:
                got += file.write(b"x" * (1 << 20))
    except OSError:
        pass
    total += got
    try:
        os.unlink(path)
    except OSError:
        pass
tell("MiB", total / (1 << 20))
""",
        stays_below("MiB", (WORKING_DIR_BYTES + TMP_BYTES) / MIB + 48),
    ),
    _attack(
        "all-of-memory-by-files",
        "Fills all scratch places at once and leaves them full.",
        """
got = 0
for place in (".", "/tmp", "/dev/shm"):
    try:
        with open(os.path.join(place, "full-" + NONCE), "wb", buffering=0) as file:
            for _ in range(96):
                got += file.write(b"x" * (1 << 20))
    except OSError:
        pass
tell("MiB", got / (1 << 20))
for place in (".", "/tmp", "/dev/shm"):
    try:
        os.unlink(os.path.join(place, "full-" + NONCE))
    except OSError:
        pass
""",
        stays_below("MiB", (WORKING_DIR_BYTES + TMP_BYTES) / MIB + 48),
    ),
    _attack(
        "inodes",
        "Makes empty files, 12000 in each place at most.",
        """
import shutil
most = 0
for place in (".", "/tmp", "/dev/shm"):
    directory = os.path.join(place, "many-" + NONCE)
    made = 0
    try:
        os.mkdir(directory)
        for number in range(12000):
            os.close(os.open(os.path.join(directory, str(number)), os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError:
        pass
    shutil.rmtree(directory, ignore_errors=True)
    most = max(most, made)
tell("files", most)
""",
        stays_below("files", 8192),
    ),
    _attack(
        "descriptors",
        "Opens files until none can be opened, 20000 at most.",
        """
opened = []
try:
    for _ in range(20000):
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
got = len(opened)
for fd in opened:
    os.close(fd)
tell("open files", got)
""",
        stays_below("open files", 16384),
    ),
    _attack(
        "processor",
        "Spins in six processes for two seconds.",
        """
import time
start = time.monotonic()
children = []
for _ in range(6):
    child = os.fork()
    if not child:
        while time.monotonic() - start < 2:
            pass
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
elapsed = time.monotonic() - start
used = os.times()
tell("processors", (used.children_user + used.children_system) / elapsed)
""",
        stays_below("processors", CPUS * 1.5, least=0.01),
        alone=True,
    ),
    _attack(
        "huge-files",
        "Makes a file that claims to be a terabyte, and asks for as much memory.",
        """
import mmap
def grow():
    fd = os.open("huge-" + NONCE, os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, 1 << 40)
    finally:
        os.close(fd)
        os.unlink("huge-" + NONCE)
attempt("file", grow)
""",
        refuses("file", by={"EFBIG", "ENOSPC", "EINVAL"}),
    ),
    _attack(
        "locked-memory",
        "Locks memory, so that it cannot be taken back.",
        """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 32 << 20)
def lock():
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(32 << 20)):
        raise OSError(ctypes.get_errno(), "mlock")
attempt("lock", lock)
""",
        refuses("lock", by={"EPERM", "ENOMEM", "EAGAIN"}),
    ),
    _attack(
        "pseudo-terminals",
        "Keeps 400 pseudo-terminals, of which a machine has 4096 for everybody.",
        _keeps("terminals", 'os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)'),
        lets_go("terminals", 256),
    ),
    _attack(
        "netlink-sockets",
        "Keeps 400 sockets of netlink, in which messages wait that count as nobody's memory.",
        _keeps("sockets", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
        lets_go("sockets", 128),
    ),
)
