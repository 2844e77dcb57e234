"""The removal of all that the user of a sandbox keeps outside processes."""

from __future__ import annotations

import os

from .libc import libc
from .procfs import pairs
from .traces import keys, objects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Tuple


def wipe(working_dir: str, scratch_dirs: List[str]) -> Dict[str, int]:
    """Removes all that the sandbox's user has kept outside processes, and returns what was there and what is left.

    Nothing of the user runs meanwhile. What resists is counted, not explained: the daemon makes another sandbox.
    ``objects`` are those of System V; ``variables`` are those of this process, which was given none.
    """
    variables = len(os.environ)
    folders = [working_dir] + scratch_dirs
    removed = left = 0
    for folder in folders:
        if os.path.isdir(folder):
            removed += _empty(folder, folders)
            left += len(_own_entries(folder, folders))
    report = {"removed": removed, "left": left, "variables": variables}
    report.update(dict.fromkeys(("objects_removed", "objects_left", "processes", "keys"), 0))
    if scratch_dirs:  # else this is no container, and what it shares is not ours to remove or to count
        uid = os.getuid()
        found = objects(uid)
        _remove(found)
        still = len(objects(uid)) if found else 0
        report.update(objects_removed=len(found) - still, objects_left=still, processes=_others(), keys=keys(uid))
    return report


def _others() -> int:
    """How many processes this user has beside this one, those that hide from others included."""
    own, pids = str(os.getuid()), (int(name) for name in os.listdir("/proc") if name.isdigit())
    uids = (dict(pairs("/proc/%d/status" % pid)).get("Uid", "").split() for pid in pids if pid != os.getpid())
    return sum(own in found for found in uids)


def _own_entries(folder: str, kept: List[str]) -> List[Tuple[str, bool]]:
    """Paths of what this user has in a folder, and whether they are directories. Mount points are left out."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.path not in kept and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    found.append((entry.path, entry.is_dir(follow_symlinks=False)))
            except FileNotFoundError:  # somebody else's, who has removed it
                continue
    return found


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


def _remove(found: List[Tuple[str, int]]) -> None:
    """Removes objects of System V."""
    library = libc()
    if library is None:
        return
    for kind, number in found:
        if kind == "shm":
            library.shmctl(number, 0, None)
        elif kind == "sem":
            library.semctl(number, 0, 0)
        else:
            library.msgctl(number, 0, None)
