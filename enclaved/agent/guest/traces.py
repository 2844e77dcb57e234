"""What a user may leave behind beside processes and files: objects and keys of the kernel, and mounts."""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple


def objects(uid: int) -> List[Tuple[str, int]]:
    """Kind and number of the shared memory, semaphores and message queues of System V that a user has."""
    found = []
    for kind in ("shm", "sem", "msg"):
        try:
            with open("/proc/sysvipc/%s" % kind) as table:
                names = table.readline().split()
                rows = [line.split() for line in table]
        except FileNotFoundError:  # a kernel without them
            continue
        found += [(kind, int(row[1])) for row in rows if int(row[names.index("uid")]) == uid]
    return found


def keys(uid: int) -> int:
    """How many keys and keyrings of the kernel a user has; 0 where the kernel does not say."""
    try:
        with open("/proc/key-users") as table:
            rows = [line.replace(":", " ").split() for line in table]
    except OSError:
        return 0
    return sum(int(row[2].partition("/")[0]) for row in rows if row[0] == str(uid))


def mounts(own: bool) -> str:
    """Names the table of mounts: it is the same as long as nothing is mounted, unmounted or changed.

    One that others change, too, tells nothing.
    """
    if not own:
        return "shared"
    with open("/proc/self/mountinfo", "rb") as table:
        text = table.read()
    return "%d-%08x" % (len(text), binascii.crc32(text))
