"""Telling what changes in directories, by inotify."""

from __future__ import annotations

import errno
import os
import struct

from .libc import PR_SET_DUMPABLE, prctl
from .paths import FOLDER, PathRefused, open_below, tree
from .rows import Rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .paths import Place

DIRECTORIES_MAX = 1024

_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED, _IS_DIRECTORY = 0x2000, 0x4000, 0x8000, 0x40000000
_WANTED = _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_CHANGES = (
    (_CREATE | _MOVED_TO, "created"),
    (_CLOSE_WRITE, "modified"),
    (_DELETE | _MOVED_FROM, "removed"),
    (_ATTRIB, "attributes"),
)
_HEAD = struct.Struct("iIII")


def watch_directory(place: Place, job: Dict[str, Any]) -> None:
    """Writes a row for each change, until it is killed or the directory is gone."""
    Watch(place, job["recursive"]).run()


class Watch:
    """The directories that are watched."""

    def __init__(self, place: Place, recursive: bool) -> None:
        import ctypes

        self._library = ctypes.CDLL(None, use_errno=True)
        self._errno = ctypes.get_errno
        self._place, self._top, self._path, self._recursive = place, place.open_folder(), place.path, recursive
        self._rows = Rows()
        self._below: Dict[int, str] = {}  # paths below the top by watch
        self._fd = self._checked(self._library.inotify_init1(os.O_CLOEXEC))
        prctl(PR_SET_DUMPABLE, 1)  # to see /proc/self/fd

    def run(self) -> None:
        """Watches."""
        root = self._add(self._top, "")
        above = self._watch_above()
        if self._recursive and self._add_tree("", told=False) is False:
            raise PathRefused(errno.EINVAL, "has more than %d directories below it" % DIRECTORIES_MAX)
        self._tell("ready")
        while root is not None and root in self._below:
            self._rows.flush()
            self._take(os.read(self._fd, 64 * 1024), root, above)
        self._tell("gone", self._path, True)
        self._rows.flush()

    def _watch_above(self) -> int:
        """Watches the directory above: one that we hold open does not say itself that it is gone. -1: impossible."""
        path = b"/proc/self/fd/%d" % self._place.folder
        watch: int = self._library.inotify_add_watch(self._fd, path, _DELETE | _MOVED_FROM)
        return watch

    def _take(self, data: bytes, root: int, above: int) -> None:
        while data:
            watch, mask, _, length = _HEAD.unpack_from(data)
            name = os.fsdecode(data[_HEAD.size : _HEAD.size + length].rstrip(b"\0"))
            data = data[_HEAD.size + length :]
            if mask & _OVERFLOW:
                self._tell("overflow")
            elif watch == above:
                if name == self._place.name:
                    self._below.pop(root, None)
            elif mask & _IGNORED or (watch == root and mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT)):
                self._below.pop(watch, None)
            elif watch in self._below and name:
                self._change(os.path.join(self._below[watch], name), mask)

    def _change(self, path: str, mask: int) -> None:
        is_directory = bool(mask & _IS_DIRECTORY)
        for bits, change in _CHANGES:
            if mask & bits:
                self._tell(change, os.path.join(self._path, path), is_directory)
        if not (is_directory and self._recursive):
            return
        if mask & (_CREATE | _MOVED_TO):
            try:
                fd = open_below(self._top, path)
            except OSError:  # gone again
                return
            added = self._add(fd, path) is not None
            os.close(fd)
            if not added or not self._add_tree(path, told=True):
                self._tell("overflow")
        elif mask & _MOVED_FROM:
            for watch, below in list(self._below.items()):
                if (below + "/").startswith(path + "/"):
                    del self._below[watch]
                    self._library.inotify_rm_watch(self._fd, watch)

    def _add_tree(self, path: str, told: bool) -> bool:
        """Watches what is below a directory, and tells what is there. False: not all, since it is too much."""
        try:
            top = open_below(self._top, path)
        except OSError:  # gone again
            return True
        try:
            for folder, below, found in tree(top, tolerant=True):
                whole = os.path.join(path, below)
                is_directory = found.st_mode & 0o170000 == 0o040000
                if told:
                    self._tell("created", os.path.join(self._path, whole), is_directory)
                if is_directory:
                    try:
                        fd = os.open(os.path.basename(below), FOLDER | os.O_RDONLY, dir_fd=folder)
                    except OSError:  # gone again, or closed to us
                        continue
                    added = self._add(fd, whole)
                    os.close(fd)
                    if added is None:
                        return False
        except PathRefused:  # too deep
            return False
        finally:
            os.close(top)
        return True

    def _add(self, fd: int, below: str) -> Optional[int]:
        """Watches one directory; ``None`` if there are too many."""
        if len(self._below) >= DIRECTORIES_MAX:
            return None
        # By the descriptor: between a look at a path and a watch on it, a link could take its place.
        path = b"/proc/self/fd/%d" % fd
        watch: int = self._checked(self._library.inotify_add_watch(self._fd, path, _WANTED))
        self._below[watch] = below
        return watch

    def _tell(self, change: str, path: str = "", is_directory: bool = False) -> None:
        self._rows.add([change, path, is_directory])

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._errno()
            raise OSError(number, "cannot watch: %s" % os.strerror(number))
        return result
