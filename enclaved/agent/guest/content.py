"""The content of files: reading, and writing that shows all of a file or none."""

from __future__ import annotations

import errno
import os
import stat
import time

from .libc import PR_SET_DUMPABLE, prctl
from .paths import check_regular, open_regular
from .rows import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from .paths import Place

PIECE_BYTES = 65536
INPUT_BYTES = 256 * 1024
UPLOAD_PREFIX = ".ms-enclave-upload-"
DRAFT_PREFIX = ".ms-enclave-draft-"
UPLOAD_KEPT_S = 600
UPLOADS_MAX = 16
UPLOAD_LOCK_S = 5.0

_F_SETPIPE_SZ = 1031
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    with Draft(place.folder) as draft:
        if job["content"] is not None:
            draft.write(job["content"].encode(job["encoding"] or "utf-8"))
        else:
            _copy_stdin(draft.fd)
        draft.appear(place.name, job["mode"])
    write_all(1, job["report"].encode())


class Draft:
    """A file without a name until it is complete: whatever kills this process leaves nothing behind.

    Where file systems have no files without a name (gVisor's), it has a hidden one, which is removed if it does not
    appear; a process that is killed leaves that.
    """

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._hidden = ""
        try:
            self.fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            self._hidden = "%s%d" % (DRAFT_PREFIX, os.getpid())
            self.fd = self._make_hidden()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)  # if it has no name by now, its room is free again
        if self._hidden:
            os.unlink(self._hidden, dir_fd=self._folder)

    def write(self, data: bytes) -> None:
        """Writes the next bytes."""
        write_all(self.fd, data)

    def appear(self, name: str, mode: int, mtime_s: Optional[float] = None) -> None:
        """Gives it its mode and its name, in the place of what had that name."""
        os.fchmod(self.fd, mode)
        if mtime_s is not None:
            os.utime(self.fd, (mtime_s, mtime_s))
        if self._hidden:
            os.rename(self._hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._hidden = ""
            return
        prctl(PR_SET_DUMPABLE, 1)  # to see /proc/self/fd
        appear(self._link, self._folder, name)

    def _make_hidden(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._hidden, flags, 0o600, dir_fd=self._folder)
        except FileExistsError:  # of an earlier process with our number, or a trap
            os.unlink(self._hidden, dir_fd=self._folder)
            return os.open(self._hidden, flags, 0o600, dir_fd=self._folder)

    def _link(self, name: str) -> None:
        # Only with a directory descriptor does os.link use linkat, which follows /proc's links; it is not looked at.
        os.link("/proc/self/fd/%d" % self.fd, name, src_dir_fd=self.fd, dst_dir_fd=self._folder, follow_symlinks=True)


def appear(make: Callable[[str], None], folder: int, name: str) -> None:
    """Has something made under a name, in the place of what has that name.

    ``make`` makes it under the name it is given, and raises FileExistsError where something is. There is another name
    beside the real one only where something is to be replaced, and only for a moment.
    """
    try:
        make(name)
        return
    except FileExistsError:
        pass
    temporary = ".written-by-%d" % os.getpid()
    try:
        try:
            make(temporary)
        except FileExistsError:  # of an earlier process with our number, or a trap
            os.unlink(temporary, dir_fd=folder)
            make(temporary)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=folder)
        except OSError:  # it was not made
            pass
        raise


def copy_content(folder: int, name: str, target_folder: int, target: str, mode: Optional[int] = None) -> None:
    """Copies a regular file; it appears complete or not at all."""
    with Draft(target_folder) as draft:
        source = open_regular(folder, name)
        try:
            found = os.fstat(source)
            while True:
                data = os.read(source, PIECE_BYTES)
                if not data:
                    break
                draft.write(data)
        finally:
            os.close(source)
        draft.appear(target, found.st_mode & 0o777 if mode is None else mode, found.st_mtime)


def widen_stdin() -> None:
    """Lets more wait in the pipe that we read, so that the guest and we need not take turns."""
    import fcntl

    try:
        fcntl.fcntl(0, _F_SETPIPE_SZ, INPUT_BYTES)
    except OSError:  # as much as the system has for this user
        pass


def _copy_stdin(fd: int) -> None:
    widen_stdin()
    while True:
        data = os.read(0, INPUT_BYTES)
        if not data:
            return
        write_all(fd, data)


def _go_on(place: Place, job: Dict[str, Any]) -> None:
    """Takes up an upload where it was cut. What arrives has a name of its own until it is complete."""
    name = UPLOAD_PREFIX + job["upload_id"]
    _forget_old_uploads(place.folder, name)
    fd, is_complete = _take_up(place, name, job["offset"])
    if is_complete:
        _repeat(fd, job["offset"])
        write_all(1, job["report"].encode())
        return
    try:
        os.utime(fd)
        arrived, offset = os.fstat(fd).st_size, job["offset"]
        if offset > arrived:
            if not arrived:
                os.unlink(name, dir_fd=place.folder)
            raise UploadGap(errno.ERANGE, str(arrived))
        widen_stdin()
        while True:
            data = os.read(0, INPUT_BYTES)
            if not data:
                break
            known = max(0, min(len(data), arrived - offset))
            os.lseek(fd, offset + known, os.SEEK_SET)
            write_all(fd, data[known:])
            offset += len(data)
        os.ftruncate(fd, offset)
        os.fchmod(fd, job["mode"])
        os.replace(name, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
    except OSError as error:
        if error.errno in FULL:  # it cannot be completed, so it does not stay in the way of others
            os.unlink(name, dir_fd=place.folder)
        raise
    finally:
        os.close(fd)
    write_all(1, job["report"].encode())


def _take_up(place: Place, name: str, offset: int) -> Tuple[int, bool]:
    """Opens and locks what has arrived of an upload; also says whether it is the file itself by now.

    The call that was cut may complete the upload while we wait for it: then what we have opened is the file.
    """
    deadline = time.monotonic() + UPLOAD_LOCK_S
    while True:
        fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=place.folder
        )
        try:
            check_regular(os.fstat(fd).st_mode)
            _lock(fd, deadline)
            if _has_name(fd, place.folder, name):
                return fd, False
            if offset and _has_name(fd, place.folder, place.name):
                return fd, True
            _check_time(deadline)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it is gone, so this begins anew


def _has_name(fd: int, folder: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _repeat(fd: int, offset: int) -> None:
    """Reads what is sent again of an upload that is complete. If it is something else, all of it must come again."""
    while True:
        data = os.read(0, INPUT_BYTES)
        if not data:
            break
        if os.pread(fd, len(data), offset) != data:
            raise UploadGap(errno.ERANGE, "0")
        offset += len(data)
    if offset != os.fstat(fd).st_size:
        raise UploadGap(errno.ERANGE, "0")


def _lock(fd: int, deadline: float) -> None:
    """Waits until the call that was cut has let go."""
    import fcntl

    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            _check_time(deadline)
            time.sleep(0.02)


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise BlockingIOError(errno.EBUSY, "another call writes to this upload")


def _forget_old_uploads(folder: int, ours: str) -> None:
    """Removes what nobody has gone on with for a while, and of what is left all but the newest few."""
    listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        found: List[Tuple[float, str]] = []
        for name in os.listdir(listed):
            if name.startswith(UPLOAD_PREFIX) and name != ours:
                try:
                    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except OSError:  # gone
                    continue
                if stat.S_ISREG(info.st_mode):
                    found.append((info.st_mtime, name))
        found.sort()
        spare = len(found) - UPLOADS_MAX + 1
        for number, (modified, name) in enumerate(found):
            if number < spare or time.time() - modified > UPLOAD_KEPT_S:
                _forget_upload(folder, name)
    finally:
        os.close(listed)


def forget_upload(place: Place, job: Dict[str, Any]) -> None:
    """Removes what has arrived of an upload that was cut, unless a call writes to it now."""
    _forget_upload(place.check_parents().folder, UPLOAD_PREFIX + job["upload_id"])


def _forget_upload(folder: int, name: str) -> None:
    """Removes what has arrived of an upload, unless a call writes to it now."""
    import fcntl

    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # gone, or no file of ours
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    except OSError:  # in use
        pass
    finally:
        os.close(fd)
