"""The host's directories and files that sandboxes mount: found without following links, and looked at again later.

Whoever can change directories of the host can put a link where there was none a moment ago. So each path is walked from
the root, one name at a time, and none may be a link; what was found is held open, so that nothing else can get its
number; and when the container runs, the sandbox's own user looks what lies there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from enclaved.errors import EngineRefused, InvalidRequest, PolicyDenied
from enclaved.model import Mount

NOBODY = 65534
"""The user that the kernel names where it does not know the owner."""
_FIELD = "spec.volumes"


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at a path of the host. It is held open for as long as it is used."""

    mount: Mount
    descriptor: int
    device: int
    inode: int
    owner: int
    mode: int
    above: frozenset[tuple[int, int]] = frozenset()
    """Devices and inodes of the directories on the way to it."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory; else it is a regular file."""
        return stat.S_ISDIR(self.mode)

    def lets(self, uid: int, *, write: bool) -> bool:
        """Whether a user without groups may read it, and write to it."""
        bits = (self.mode >> 6) & 7 if uid == self.owner else self.mode & 7
        wanted = 4 | (2 if write else 0) | (1 if self.is_directory else 0)
        return bits & wanted == wanted


@contextlib.contextmanager
def found(mounts: Sequence[Mount]) -> Iterator[tuple[Found, ...]]:
    """Finds what is to be mounted, for the block. Blocks on the disk. Raises `InvalidRequest`, `PolicyDenied`."""
    with contextlib.ExitStack() as stack:
        yield tuple(_find(mount, stack) for mount in mounts)


def user_for(places: Collection[Found], own_uid: int, taken: range) -> int:
    """The user that a sandbox's programs run as: its own, or the owner of what it may write to.

    ``taken`` are the users of sandboxes, of which no directory may be. Raises `PolicyDenied` and `InvalidRequest`.
    """
    writable = [place for place in places if not place.mount.read_only]
    owners = {place.owner for place in writable}
    if not owners:
        uid = own_uid
    elif len(owners) > 1:
        paths = ", ".join(f"{place.mount.host_path} (of uid {place.owner})" for place in writable)
        text = f"what can be written to must belong to one user, and does not: {paths}; mount some with mode 'ro'"
        raise InvalidRequest.of(_FIELD, text)
    else:
        uid = owners.pop()
    if uid == 0:
        path = writable[0].mount.host_path
        text = f"{path} belongs to root, as which no sandbox runs; use a directory of another user, or mode 'ro'"
        raise PolicyDenied("volumes", _FIELD, text)
    if writable and uid == NOBODY:
        path = writable[0].mount.host_path
        raise PolicyDenied("volumes", _FIELD, f"{path} belongs to nobody (uid {NOBODY}); give it to a user")
    if writable and uid in taken:
        path = writable[0].mount.host_path
        text = f"{path} belongs to uid {uid}, which is one of those for sandboxes (sandbox.uid_first)"
        raise PolicyDenied("volumes", _FIELD, text)
    for place in places:
        if not place.lets(uid, write=not place.mount.read_only):
            what = "read it" if place.mount.read_only else "write to it"
            kind = "directory" if place.is_directory else "file"
            fix = f"chmod o+rX {place.mount.host_path}" if place.mount.read_only else "give its owner the right to"
            text = (
                f"the {kind} {place.mount.host_path} has mode {stat.S_IMODE(place.mode):04o} and belongs to uid "
                f"{place.owner}; the sandbox's programs run as uid {uid} and cannot {what} ({fix})"
            )
            raise InvalidRequest.of(_FIELD, text)
    return uid


_LOOK = """
import json, os
told = []
for path, is_directory in PLACES:
    found = os.stat(path, follow_symlinks=False)
    if is_directory:
        os.scandir(path).close()
    else:
        open(path, 'rb').close()
    told.append([found.st_dev, found.st_ino])
print(json.dumps(told))
"""


def look_program(places: Sequence[Found]) -> str:
    """A program for the sandbox's user: it tells what lies where something was mounted, if that can be read."""
    return f"PLACES = {[(place.mount.target, place.is_directory) for place in places]!r}\n{_LOOK}"


def check_told(places: Sequence[Found], output: bytes, sandbox_id: str) -> None:
    """Compares what the program told with what was found on the host. Raises `EngineRefused`."""
    try:
        told = json.loads(output)
    except (ValueError, RecursionError):
        told = None
    if told != [[place.device, place.inode] for place in places]:
        paths = ", ".join(place.mount.host_path for place in places)
        text = f"something else was mounted than what was found at {paths}: it was changed meanwhile; try again"
        raise EngineRefused(f"start sandbox {sandbox_id!r}", text)


def _find(mount: Mount, stack: contextlib.ExitStack) -> Found:
    path = mount.host_path
    parts = path.split("/")[1:]
    if not path.startswith("/") or not all(parts) or {".", ".."} & {*parts} or "\0" in path:
        raise InvalidRequest.of(_FIELD, f"{path[:80]!a} is not absolute and normalised")
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    walked = ""
    above = set()
    try:
        for part in parts:
            folder = os.fstat(descriptor)
            above.add((folder.st_dev, folder.st_ino))
            walked = f"{walked}/{part}"
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                # What it says, and not where that leads: who may write there could ask so for what else there is.
                says = os.readlink("", dir_fd=descriptor)
                text = f"{path} passes through the link {walked}; name what it leads to ({says[:200]!r})"
                raise PolicyDenied("volumes", _FIELD, text)
        seen = os.fstat(descriptor)
    except OSError as error:
        os.close(descriptor)
        text = f"{path} cannot be mounted: {walked}: {error.strerror}; make it first, or name another one"
        raise InvalidRequest.of(_FIELD, text) from error
    except BaseException:
        os.close(descriptor)
        raise
    stack.callback(os.close, descriptor)
    if not stat.S_ISDIR(seen.st_mode) and not stat.S_ISREG(seen.st_mode):
        raise InvalidRequest.of(_FIELD, f"{path} is neither a directory nor a regular file")
    return Found(mount, descriptor, seen.st_dev, seen.st_ino, seen.st_uid, seen.st_mode, frozenset(above))
