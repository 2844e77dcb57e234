"""The content of files: reading, and writing that shows all of a file or none."""

from __future__ import annotations

import errno
import os
import time

from .libc import PR_SET_DUMPABLE, prctl
from .paths import check_regular, open_regular
from .rows import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .paths import Place

PIECE_BYTES = 65536
UPLOAD_PREFIX = ".upload-"
UPLOAD_KEPT_S = 600
UPLOAD_LOCK_S = 5.0


class UploadGap(OSError):
    """An upload that goes on behind what has arrived; the text is the number of bytes that have."""


def read_file(place: Place, job: Dict[str, Any]) -> None:
    """Writes a file to stdout."""
    import codecs

    fd = place.open_regular()
    if job["offset"] > os.fstat(fd).st_size:
        return
    os.lseek(fd, job["offset"], os.SEEK_SET)
    left = job["length"]
    decoder = codecs.getincrementaldecoder(job["encoding"])() if job["encoding"] else None
    while left is None or left > 0:
        data = os.read(fd, PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if left is not None:
            left -= len(data)
        write_all(1, decoder.decode(data, not data).encode("utf-8", "surrogateescape") if decoder else data)
        if not data:
            break


def write_file(place: Place, job: Dict[str, Any]) -> None:
    """Writes a file from the job, or from stdin."""
    if job["create_parents"]:
        place.make_parents()
    place.check_parents()
    if place.exists():
        check_regular(place.stat().st_mode)
    if job["upload_id"]:
        _go_on(place, job)
        return
    draft = Draft(place.folder)
    if job["content"] is not None:
        draft.write(job["content"].encode(job["encoding"] or "utf-8"))
    else:
        _copy_stdin(draft.fd)
    draft.appear(place.name, job["mode"])
    write_all(1, job["report"].encode())


class Draft:
    """A file without a name until it is complete: whatever kills this process leaves nothing behind."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self.fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def write(self, data: bytes) -> None:
        """Writes the next bytes."""
        write_all(self.fd, data)

    def appear(self, name: str, mode: int, mtime_s: Optional[float] = None) -> None:
        """Gives it its mode and its name, in the place of what had that name."""
        os.fchmod(self.fd, mode)
        if mtime_s is not None:
            os.utime(self.fd, (mtime_s, mtime_s))
        prctl(PR_SET_DUMPABLE, 1)  # to see /proc/self/fd
        temporary = ".written-by-%d" % os.getpid()
        # Only with a directory descriptor does os.link use linkat, which follows /proc's links; it is not looked at.
        os.link(
            "/proc/self/fd/%d" % self.fd,
            temporary,
            src_dir_fd=self.fd,
            dst_dir_fd=self._folder,
            follow_symlinks=True,
        )
        try:
            os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            os.unlink(temporary, dir_fd=self._folder)
            raise
        os.close(self.fd)


def copy_content(folder: int, name: str, target_folder: int, target: str, mode: Optional[int] = None) -> None:
    """Copies a regular file; it appears complete or not at all."""
    source = open_regular(folder, name)
    found = os.fstat(source)
    draft = Draft(target_folder)
    while True:
        data = os.read(source, PIECE_BYTES)
        if not data:
            break
        draft.write(data)
    os.close(source)
    draft.appear(target, found.st_mode & 0o777 if mode is None else mode, found.st_mtime)


def _copy_stdin(fd: int) -> None:
    while True:
        data = os.read(0, PIECE_BYTES)
        if not data:
            return
        write_all(fd, data)


def _go_on(place: Place, job: Dict[str, Any]) -> None:
    """Takes up an upload where it was cut. What arrives has a name of its own until it is complete."""
    _forget_old_uploads(place.folder)
    name = UPLOAD_PREFIX + job["upload_id"]
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place.folder)
    check_regular(os.fstat(fd).st_mode)
    _lock(fd)
    os.utime(fd)
    arrived, offset = os.fstat(fd).st_size, job["offset"]
    if offset > arrived:
        raise UploadGap(errno.ERANGE, str(arrived))
    while True:
        data = os.read(0, PIECE_BYTES)
        if not data:
            break
        known = max(0, min(len(data), arrived - offset))
        os.lseek(fd, offset + known, os.SEEK_SET)
        write_all(fd, data[known:])
        offset += len(data)
    os.ftruncate(fd, offset)
    os.fchmod(fd, job["mode"])
    os.replace(name, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
    write_all(1, job["report"].encode())


def _lock(fd: int) -> None:
    """Waits until the call that was cut has let go."""
    import fcntl

    deadline = time.monotonic() + UPLOAD_LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EBUSY, "another call writes to this upload") from None
            time.sleep(0.02)


def _forget_old_uploads(folder: int) -> None:
    listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        for name in os.listdir(listed):
            if name.startswith(UPLOAD_PREFIX):
                try:
                    if time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > UPLOAD_KEPT_S:
                        os.unlink(name, dir_fd=folder)
                except OSError:  # gone, or no file: not ours
                    continue
    finally:
        os.close(listed)
