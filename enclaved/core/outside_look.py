"""What is mounted in a container, as the kernel shows it to this host: no image has a say in that."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from enclaved.core.host_paths import Found
from enclaved.errors import EngineRefused

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def check_from_outside(pid: int, container_id: str, places: Sequence[Found], sandbox_id: str) -> bool:
    """Looks through the root directory of a container's first process whether what was found lies where it should.

    False: this daemon may not look there, or does not see that process. Nothing is opened but to be identified, and no
    link is followed. Blocks on the disk. Raises `EngineRefused` if something else lies there, or a link on the way.
    """
    if pid <= 0 or not _is_of(pid, container_id):
        return False
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False  # it needs the right to trace other users' processes
    try:
        for place in places:
            _check(root, place, sandbox_id)
    finally:
        os.close(root)
    return True


def _is_of(pid: int, container_id: str) -> bool:
    """Whether a process is one of a container. It is not where the engine counts processes otherwise than we do."""
    try:
        return container_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _check(root: int, place: Found, sandbox_id: str) -> None:
    target, descriptor = place.mount.target, os.dup(root)
    try:
        for part in target.split("/")[1:]:
            below = os.open(part, _FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                text = f"the image has a link on the way to {target}; mount it at another place"
                raise EngineRefused(f"start sandbox {sandbox_id!r}", text)
        found = os.fstat(descriptor)
    except OSError as error:
        text = f"what was mounted at {target} cannot be looked at: {error.strerror}"
        raise EngineRefused(f"start sandbox {sandbox_id!r}", text) from error
    finally:
        os.close(descriptor)
    if (found.st_dev, found.st_ino) != (place.device, place.inode):
        text = f"something else was mounted than what was found at {place.mount.host_path}: it was changed meanwhile"
        raise EngineRefused(f"start sandbox {sandbox_id!r}", f"{text}; try again")
