"""Observing or disturbing a neighbour, or whoever comes later. The neighbour is a second sandbox of the same caller."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import Attack, Category, Evidence, Judge, Judgement, Program, contained, escaped
from enclaved.doctor.attacks.base import inconclusive as unclear
from enclaved.doctor.attacks.judges import NOBODY_THERE, all_of, finds, refuses, tells

NEIGHBOUR: Final = """
import ctypes, socket, select, time
NAME = FACTS["neighbour"]
for place in (".", "/tmp", "/dev/shm"):
    with open(os.path.join(place, NAME), "w") as file:
        file.write(FACTS["neighbour_secret"])
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, NAME[:15].encode(), 0, 0, 0)
tell("segment", libc.shmget(FACTS["segment"], 4096, 0o1666))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0" + NAME)
port = socket.socket(socket.AF_INET)
port.bind(("127.0.0.1", FACTS["neighbour_port"]))
for each in (abstract, port):
    each.listen(8)
tell("ready", True)
while True:
    found = select.select([abstract, port, 0], [], [])[0]
    if 0 in found and not os.read(0, 64):
        break
    for each in (abstract, port):
        if each in found:
            peer = each.accept()[0]
            peer.settimeout(2)
            try:
                text = peer.recv(64).decode("latin-1")
            except OSError:
                text = ""
            tell("contact-" + (text or "somebody"), each is port)
            peer.close()
"""
"""What runs beside every attack in the neighbouring sandbox, and tells who reached it."""


def _other_user(seen: Evidence) -> Judgement:
    if seen.status is None or seen.neighbour_status is None:
        return unclear("the two processes could not be looked at from the host")
    ours, theirs = seen.status.get("Uid", "?").split(), seen.neighbour_status.get("Uid", "?").split()
    if {"?"} & {*ours, *theirs}:
        return unclear("the users could not be read on the host")
    return escaped(f"both run as user {ours[0]}") if {*ours} & {*theirs} else contained("each has a user of its own")


def _attack(name: str, sentence: str, source: str, judge: Judge, *, looks: bool = False) -> Attack:
    needs = frozenset({"host"}) if looks else frozenset[str]()
    program = Program(source, look_when_ready=looks, stdin=b"" if looks else None)
    return Attack(f"tenancy.{name}", Category.TENANCY, sentence, judge, program, needs=needs)


async def _leave_and_look(act: Act) -> Evidence:
    """Leaves marks in one sandbox, removes it, and looks for them in the next."""
    first = await act.sandbox()
    left = await act.run(Program(_LEAVE), first)
    await act.remove(first)
    second = await act.sandbox()
    seen = await act.run(Program(_LOOK), second)
    return act.evidence(seen, left=act.told(left).get("left"), found=act.told(seen).get("found", "nothing was told"))


_LEAVE: Final = """
import ctypes
made = 0
for place in (".", "/tmp", "/dev/shm"):
    with open(os.path.join(place, "left-" + NONCE), "w") as file:
        made += bool(file.write(NONCE))
ctypes.CDLL(None).shmget(FACTS["segment"] + 1, 4096, 0o1666)
if not os.fork():
    os.setsid()
    ctypes.CDLL(None).prctl(15, ("left" + NONCE)[:15].encode(), 0, 0, 0)
    time.sleep(30)
    os._exit(0)
tell("left", made)
"""
_LOOK: Final = """
import ctypes
found = []
for place in (".", "/tmp", "/dev/shm"):
    if os.path.exists(os.path.join(place, "left-" + NONCE)):
        found.append(place)
if ctypes.CDLL(None).shmget(FACTS["segment"] + 1, 0, 0) >= 0:
    found.append("a memory segment")
for pid in os.listdir("/proc"):
    try:
        if pid.isdigit() and open("/proc/%s/comm" % pid).read().startswith(("left" + NONCE)[:15]):
            found.append("a process")
    except OSError:
        pass
tell("found", found)
"""

ATTACKS: Final = (
    _attack(
        "users",
        "Runs under the same user as a neighbour; the host looks at both.",
        "ready()\n",
        _other_user,
        looks=True,
    ),
    _attack(
        "quota-of-the-user",
        "Uses up what the kernel counts by user: all instances of inotify.",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
got = []
if os.getuid() == 0:
    tell("user", "root")  # whose quota is the host's: not touched
else:
    tell("user", "own")
    while len(got) < 300:
        fd = libc.inotify_init1(0)
        if fd < 0:
            break
        got.append(fd)
tell("instances", len(got))
ready()
""",
        all_of(
            tells("user", lambda value: value == "own", "a user of its own"),
            tells("instances", lambda value: isinstance(value, int) and value > 0, "it took instances"),
        ),
        looks=True,
    ),
    _attack(
        "files",
        "Searches every directory for files of a neighbour.",
        """
seen, found = 0, []
for top in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/mnt", "."):
    for directory, _, names in os.walk(top):
        seen += 1
        for name in names:
            if name == FACTS["neighbour"] and seen < 5000:
                found.append(directory)
                with open(os.path.join(directory, name)) as file:
                    print(file.read(200))
tell("directories", seen)
tell("found", found)
""",
        all_of(tells("found", lambda value: value == [], "no file of it"), tells("directories", bool, "it searched")),
    ),
    _attack(
        "abstract-sockets",
        "Connects to an abstract unix socket of a neighbour.",
        'reach("connect", socket.AF_UNIX, "\\0" + FACTS["neighbour"])\n',
        refuses("connect", by=NOBODY_THERE),
    ),
    _attack(
        "loopback",
        "Connects to a port on a neighbour's loopback.",
        'reach("connect", socket.AF_INET, ("127.0.0.1", FACTS["neighbour_port"]))\n',
        refuses("connect", by=NOBODY_THERE),
    ),
    _attack(
        "processes",
        "Looks for processes of a neighbour, and asks whether it could signal one.",
        """
found, seen = [], 0
for pid in os.listdir("/proc"):
    if not pid.isdigit():
        continue
    seen += 1
    try:
        with open("/proc/%s/comm" % pid) as file:
            name = file.read().strip()
    except OSError:
        continue
    if name == FACTS["neighbour"][:15]:
        os.kill(int(pid), 0)
        found.append(pid)
tell("seen", seen)
tell("found", found)
""",
        all_of(tells("found", lambda value: value == [], "none of it"), tells("seen", bool, "it saw its own")),
    ),
    _attack(
        "shared-memory",
        "Opens a segment of shared memory of a neighbour.",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def open_segment():
    if libc.shmget(FACTS["segment"], 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "shmget")
attempt("segment", open_segment)
""",
        refuses("segment", by=NOBODY_THERE),
    ),
    Attack(
        "tenancy.next-sandbox",
        Category.TENANCY,
        "Leaves files, memory and a process for the next sandbox.",
        all_of(
            finds("left", lambda value: value == 3, "it left marks"),
            finds("found", lambda value: value == [], "the next sandbox has none of them"),
        ),
        act=_leave_and_look,
    ),
)
