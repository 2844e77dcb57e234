"""The removal of all that the user of a sandbox keeps outside processes."""

from __future__ import annotations

import os

from .libc import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple


def wipe(working_dir: str, scratch_dirs: List[str]) -> Dict[str, int]:
    """Removes all that the sandbox's user has kept outside processes, and returns what was there and what is left.

    Nothing of the user runs meanwhile. What resists is counted, not explained: the daemon makes another sandbox.
    """
    folders = [working_dir] + scratch_dirs
    removed = left = 0
    for folder in folders:
        if os.path.isdir(folder):
            removed += _empty(folder, folders)
            left += len(_own_entries(folder, folders))
    if scratch_dirs:  # else this is no container, and what it shares is not ours to remove
        objects = _shared_objects()
        for remove, number in objects:
            remove(number)
        still = len(_shared_objects())
        removed += len(objects) - still
        left += still
    return {"removed": removed, "left": left}


def _own_entries(folder: str, kept: List[str]) -> List[Tuple[str, bool]]:
    """Paths of what this user has in a folder, and whether they are directories. Mount points are left out."""
    with os.scandir(folder) as entries:
        return [
            (entry.path, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if entry.path not in kept and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        ]


def _empty(folder: str, kept: List[str]) -> int:
    """Removes what this user has in a folder, however deep, and returns how much that was.

    A directory's own directories are moved up before it goes, so that no path gets long and nothing is recursive.
    """
    if os.stat(folder).st_uid == os.getuid():
        os.chmod(folder, 0o700)
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
    removed = moved = 0
    while True:
        before = removed
        for path, is_directory in _own_entries(folder, kept):
            try:
                if is_directory:
                    os.chmod(path, 0o700)
                    for inner, is_inner_directory in _own_entries(path, kept):
                        if is_inner_directory:
                            os.chmod(inner, 0o700)
                            moved += 1
                            os.rename(inner, os.path.join(folder, ".wiped-%d-%d" % (os.getpid(), moved)))
                        else:
                            os.unlink(inner)
                            removed += 1
                    os.rmdir(path)
                else:
                    os.unlink(path)
                removed += 1
            except OSError:
                continue
        if removed == before:
            return removed


def _shared_objects() -> List[Tuple[Callable[[int], Any], int]]:
    """The shared memory, semaphores and message queues of System V that this user has, with what removes them."""
    library = libc()
    calls: Dict[str, Callable[[int], Any]] = {
        "shm": lambda number: library and library.shmctl(number, 0, None),
        "sem": lambda number: library and library.semctl(number, 0, 0),
        "msg": lambda number: library and library.msgctl(number, 0, None),
    }
    found = []
    for kind, remove in calls.items():
        try:
            with open("/proc/sysvipc/%s" % kind) as table:
                names = table.readline().split()
                rows = [line.split() for line in table]
        except FileNotFoundError:  # a kernel without them
            continue
        found += [(remove, int(row[1])) for row in rows if int(row[names.index("uid")]) == os.getuid()]
    return found
