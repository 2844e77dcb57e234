"""Files as they lie in directories: looking, listing, making, moving, copying and removing."""

from __future__ import annotations

import errno
import os
import stat
import time

from .content import appear, copy_content
from .globs import matcher
from .libc import PR_SET_DUMPABLE, prctl
from .paths import FOLDER, PathRefused, Place, open_below, tree
from .rows import Rows, file_row, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Tuple


class TargetMissing(FileNotFoundError):
    """The directory to move or copy to does not exist."""


def stat_file(place: Place, job: Dict[str, Any]) -> None:
    """Describes one path."""
    rows = Rows()
    rows.add(file_row(place.path, place.stat(), place.folder, place.name))
    rows.flush()


def list_directory(place: Place, job: Dict[str, Any]) -> None:
    """Describes what is in a directory, and with `recursive` everything below it."""
    matches = matcher(job["glob"])
    rows = Rows()
    top = place.open_folder()
    for folder, path, info in tree(top, tolerant=True) if job["recursive"] else _entries(top):
        if matches(path):
            try:
                rows.add(file_row(os.path.join(place.path, path), info, folder, os.path.basename(path)))
            except OSError:  # gone since it was listed
                continue
    rows.flush()


def _entries(top: int) -> Iterator[Tuple[int, str, os.stat_result]]:
    for name in sorted(os.listdir(top)):
        try:
            yield top, name, os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            continue


def make_directory(place: Place, job: Dict[str, Any]) -> None:
    """Makes a directory; leaves one that is there alone."""
    if job["create_parents"]:
        place.make_parents()
    try:
        os.mkdir(place.name, 0o700, dir_fd=place.check_parents().folder)
    except FileExistsError:
        if not stat.S_ISDIR(place.stat().st_mode):
            raise
        return
    fd = place.open_folder()
    os.fchmod(fd, job["mode"])  # whatever the mask is
    os.close(fd)


def move_file(place: Place, target: Place, job: Dict[str, Any]) -> None:
    """Gives something another name."""
    is_directory = stat.S_ISDIR(place.stat().st_mode)
    _check_target(place, target, job["replace"], is_directory)
    folders = {"src_dir_fd": place.folder, "dst_dir_fd": target.folder}
    try:
        if not job["replace"] and not is_directory:
            try:
                os.link(place.name, target.name, follow_symlinks=False, **folders)  # never in the place of another
                os.unlink(place.name, dir_fd=place.folder)
                return
            except PermissionError:  # the kernel keeps some files from being linked
                pass
        os.rename(place.name, target.name, **folders)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(place, target, is_directory)
        remove(place)


def copy_file(place: Place, target: Place, job: Dict[str, Any]) -> None:
    """Copies a file or link, and with `recursive` a directory."""
    is_directory = stat.S_ISDIR(place.stat().st_mode)
    if is_directory and not job["recursive"]:
        raise IsADirectoryError(errno.EISDIR, "is a directory; copy it with `recursive`")
    _check_target(place, target, job["replace"], is_directory)
    _copy(place, target, is_directory)


def _check_target(place: Place, target: Place, replace: bool, is_directory: bool) -> None:
    if target.missing:
        raise TargetMissing(errno.ENOENT, os.strerror(errno.ENOENT))
    if is_directory and (target.path + "/").startswith(place.path + "/"):
        raise PathRefused(errno.EINVAL, "a directory cannot be put into itself")
    if target.exists() and (not replace or is_directory or stat.S_ISDIR(target.stat().st_mode)):
        raise FileExistsError(errno.EEXIST, target.path)


def _copy(place: Place, target: Place, is_directory: bool) -> None:
    if not is_directory:
        _copy_one(place.folder, place.name, place.stat(), target.folder, target.name)
        return
    # Under another name until it is complete.
    draft = Place(target.folder, ".copied-by-%d" % os.getpid(), "", [])
    try:
        os.mkdir(draft.name, 0o700, dir_fd=draft.folder)
        _copy_tree(place.open_folder(), draft.open_folder())
        os.rename(draft.name, target.name, src_dir_fd=draft.folder, dst_dir_fd=target.folder)
    except BaseException:  # also when we are asked to stop
        if draft.exists():
            remove(draft)
        raise


def _copy_tree(source: int, target: int) -> None:
    modes = [("", os.fstat(source).st_mode)]
    above, into = "", os.dup(target)
    for folder, path, info in tree(source):
        parent, _, name = path.rpartition("/")
        if parent != above:
            os.close(into)
            above, into = parent, open_below(target, parent)
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=into)
            modes.append((path, info.st_mode))
        elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            _copy_one(folder, name, info, into, name)
        else:
            raise PathRefused(errno.EINVAL, "%s is neither a file, a link nor a directory" % path)
    os.close(into)
    for path, mode in reversed(modes):  # last, since a directory may be closed to its owner
        fd = open_below(target, path)
        os.fchmod(fd, mode & 0o777)
        os.close(fd)


def _copy_one(folder: int, name: str, info: os.stat_result, target_folder: int, target: str) -> None:
    if not stat.S_ISLNK(info.st_mode):
        copy_content(folder, name, target_folder, target)
        return
    link = os.readlink(name, dir_fd=folder)
    appear(lambda new: os.symlink(link, new, dir_fd=target_folder), target_folder, target)


def remove_file(place: Place, job: Dict[str, Any]) -> None:
    """Removes a file, a link or an empty directory, and with `recursive` all that is in one."""
    try:
        if not stat.S_ISDIR(place.stat().st_mode):
            os.unlink(place.name, dir_fd=place.folder)
        elif not job["recursive"]:
            os.rmdir(place.name, dir_fd=place.folder)
        else:
            remove(place)
    except FileNotFoundError:
        if not job["missing_ok"]:
            raise
    write_all(1, job["report"].encode())


def remove(place: Place) -> None:
    """Removes a file or a whole tree.

    A directory's own directories are moved up before it goes, so that no path gets long and nothing is recursive.
    """
    if not stat.S_ISDIR(place.stat().st_mode):
        os.unlink(place.name, dir_fd=place.folder)
        return
    top = _open_own(place.folder, place.name)
    moved = 0
    while True:
        names = os.listdir(top)
        if not names:
            break
        for name in names:
            if not _unlinked(top, name):
                inner = _open_own(top, name)
                for below in os.listdir(inner):
                    if not _unlinked(inner, below):
                        moved += 1
                        os.close(_open_own(inner, below))
                        os.rename(below, ".removed-%d-%d" % (os.getpid(), moved), src_dir_fd=inner, dst_dir_fd=top)
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    os.close(top)
    os.rmdir(place.name, dir_fd=place.folder)


def _open_own(folder: int, name: str) -> int:
    """Opens a directory that is to go, and lets us in if its owner, whom we are, had closed it to himself."""
    fd = os.open(name, FOLDER | os.O_PATH, dir_fd=folder)
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o700 != 0o700 and found.st_uid == os.getuid():
            prctl(PR_SET_DUMPABLE, 1)  # to see /proc/self/fd
            os.chmod("/proc/self/fd/%d" % fd, 0o700)
        return os.open(".", FOLDER | os.O_RDONLY, dir_fd=fd)
    finally:
        os.close(fd)


def _unlinked(folder: int, name: str) -> bool:
    """Removes an entry that is no directory; False for one that is."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return False
    os.unlink(name, dir_fd=folder)
    return True


def exists(place: Place, job: Dict[str, Any]) -> None:
    """Says whether something is there."""
    write_all(1, b"exists" if place.exists() else b"does not exist")


def list_lines(place: Place, job: Dict[str, Any]) -> None:
    """Describes a directory, or one file, as ``ls -la`` does."""
    if stat.S_ISDIR(place.stat().st_mode):
        folder = place.open_folder()
        entries = [(name, name) for name in [".", ".."] + sorted(os.listdir(folder))]
    else:
        folder, entries = place.folder, [(job["path"], place.name)]
    rows: List[str] = []
    blocks = 0
    for shown, name in entries:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            link = " -> " + os.readlink(name, dir_fd=folder) if stat.S_ISLNK(found.st_mode) else ""
        except OSError:  # gone since it was listed
            continue
        blocks += found.st_blocks // 2
        when = time.strftime("%b %e %H:%M", time.localtime(found.st_mtime))
        row = (stat.filemode(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_size, when)
        rows.append("%s %3d %d %d %8d %s " % row + shown + link)
    text = "\n".join((["total %d" % blocks] if len(entries) > 1 else []) + rows) + "\n"
    write_all(1, text.encode("utf-8", "surrogateescape"))
