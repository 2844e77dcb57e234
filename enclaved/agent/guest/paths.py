"""Paths of a sandbox, walked one name at a time: a link that appears meanwhile leads nowhere."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List, Tuple

LINKS_MAX = 40
DEPTH_MAX = 200

FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PathRefused(OSError):
    """A path that leads outside, or to something that is no file."""


class Place:
    """A name in a directory that is held open, so that it stays where it was found."""

    def __init__(self, folder: int, name: str, path: str, missing: List[str]) -> None:
        self.folder, self.name, self.path = folder, name, path
        self.missing = missing  # the names of directories above it that do not exist

    def make_parents(self) -> None:
        """Makes the directories above it that do not exist."""
        for name in self.missing:
            try:
                os.mkdir(name, 0o755, dir_fd=self.folder)
            except FileExistsError:  # somebody was quicker
                pass
            self.folder = _exchange(self.folder, os.open(name, FOLDER | os.O_PATH, dir_fd=self.folder))
        self.missing = []

    def check_parents(self) -> Place:
        """Raises FileNotFoundError unless the directories above it exist."""
        if self.missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self

    def stat(self) -> os.stat_result:
        """Looks at it; a link is seen as itself."""
        return os.stat(self.name, dir_fd=self.check_parents().folder, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether something is there."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def open_folder(self) -> int:
        """Opens it as a directory."""
        return os.open(self.name, FOLDER | os.O_RDONLY, dir_fd=self.check_parents().folder)

    def open_regular(self) -> int:
        """Opens it as a regular file, to be read."""
        check_regular(self.stat().st_mode)  # opening may have effects of its own
        return open_regular(self.folder, self.name)


def find(path: str, working_dir: str, follow: bool = True) -> Place:
    """Follows links and makes sure that the path ends in the working directory or /tmp.

    ``follow=False``: the last name may be a link, and is not followed; the two directories themselves are refused.
    This process can open no more than user code can, so the check is there to tell mistakes, not to keep a secret.
    """
    whole = os.path.join(working_dir, path)
    place = _walk(whole, follow or whole.rstrip("/").rpartition("/")[2] in (".", ".."))
    for root in (os.path.realpath(working_dir), "/tmp"):
        if place.path.startswith(root + "/") or (place.path == root and follow):
            return place
        if place.path == root:
            raise PathRefused(errno.EXDEV, "%s itself cannot be deleted or moved, only what is in it" % root)
    reason = "the path is outside the sandbox's directories (%s and /tmp)" % working_dir
    raise PathRefused(errno.EXDEV, reason)


def _walk(path: str, follow: bool) -> Place:
    waiting = _names(path)
    names: List[str] = []  # so far, without links
    depth = 0  # how many of them exist and are directories
    folder = _open_folders([])
    links = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            names = names[:-1]
            if depth > len(names):
                depth = len(names)
                folder = _exchange(folder, _open_folders(names))
            continue
        names.append(name)
        if depth < len(names) - 1 or (not waiting and not follow):
            continue
        try:
            target = os.readlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EACCES and _is_hidden(name, folder):
                continue
            if error.errno != errno.EINVAL:
                raise
            if waiting:
                folder = _exchange(folder, os.open(name, FOLDER | os.O_PATH, dir_fd=folder))
                depth += 1
            continue
        links += 1
        if links > LINKS_MAX:
            raise PathRefused(errno.ELOOP, "not a regular file: links that lead to each other")
        names.pop()
        waiting += _names(target)
        if target.startswith("/"):
            names, depth = [], 0
            folder = _exchange(folder, _open_folders([]))
    above = names[:-1]
    if depth > len(above):
        depth = len(above)
        folder = _exchange(folder, _open_folders(above))
    return Place(folder, names[-1] if names else ".", "/" + "/".join(names), above[depth:])


def _is_hidden(name: str, folder: int) -> bool:
    """Whether the directory shows nothing of what is in it, so that it makes no difference what that is."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except PermissionError:
        return True
    return False


def _names(path: str) -> List[str]:
    """The names of a path, last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _open_folders(names: List[str]) -> int:
    folder = os.open("/", FOLDER | os.O_PATH)
    for name in names:
        folder = _exchange(folder, os.open(name, FOLDER | os.O_PATH, dir_fd=folder))
    return folder


def _exchange(old: int, new: int) -> int:
    os.close(old)
    return new


def open_below(folder: int, path: str) -> int:
    """Opens a directory below another, by names without links. The other stays open."""
    found = os.dup(folder)
    for name in path.split("/"):
        if name:
            found = _exchange(found, os.open(name, FOLDER | os.O_RDONLY, dir_fd=found))
    return found


def check_regular(mode: int) -> None:
    """Raises for everything that is no regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise PathRefused(errno.EINVAL, "not a regular file")


def open_regular(folder: int, name: str) -> int:
    """Opens a regular file to be read; links are not followed."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    check_regular(os.fstat(fd).st_mode)
    return fd


def tree(top: int, tolerant: bool = False) -> Iterator[Tuple[int, str, os.stat_result]]:
    """Everything below a directory, sorted: the directory it is in, its path below the top, and what it is.

    Directories come before what is in them. ``tolerant``: what may not be read is passed over.
    """
    waiting = [(top, "", sorted(os.listdir(top), reverse=True))]
    while waiting:
        folder, prefix, names = waiting[-1]
        if not names:
            waiting.pop()
            if folder != top:
                os.close(folder)
            continue
        name = names.pop()
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield folder, prefix + name, found
            if not stat.S_ISDIR(found.st_mode):
                continue
            inner = os.open(name, FOLDER | os.O_RDONLY, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):  # gone since it was listed
            continue
        except PermissionError:
            if not tolerant:
                raise
            continue
        if len(waiting) >= DEPTH_MAX:
            raise PathRefused(errno.ENAMETOOLONG, "directories lie more than %d deep in each other" % DEPTH_MAX)
        waiting.append((inner, prefix + name + "/", sorted(os.listdir(inner), reverse=True)))
