"""One thing done to one file, as a job."""

from __future__ import annotations

import json
import os
import socket
import time

from .claims import encode_claim
from .libc import PR_SET_DUMPABLE, prctl
from .limits import MAX_EXCEPTION_TEXT_BYTES
from .wipe import wipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, NoReturn


class PathRefused(OSError):
    """A path that leads outside, or to something that is no file."""


def run_file_job(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Does one thing to one path, as the user that this process has become."""
    try:
        if job["operation"] == "wipe":
            left = wipe(settings["working_dir"], settings["scratch_dirs"])
            write_all(1, json.dumps(left).encode())
            os._exit(0)
        path = resolve(job["path"], settings["working_dir"], job["operation"] == "delete")
        {"read": _read, "write": _write, "delete": _delete, "list": _list, "exists": _exists}[job["operation"]](
            path, job
        )
    except (OSError, UnicodeError) as error:
        kind = "PathRefused" if isinstance(error, PathRefused) else type(error).__name__
        reason = (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace").decode()
        try:
            os.write(2, ("%s: %s\n" % (job["path"], reason)).encode("utf-8", "replace"))
            number = getattr(error, "errno", None)
            exception = {"type": kind, "message": reason[:MAX_EXCEPTION_TEXT_BYTES], "errno": number}
            control.sendall(encode_claim({"done": True, "exit_code": 1, "exception": exception}))
        finally:
            os._exit(1)
    os._exit(0)


def resolve(path: str, working_dir: str, keep_last: bool) -> str:
    """Follows links and makes sure that the path ends in the working directory or /tmp.

    This process can open no more than user code can, so the check is there to tell mistakes, not to keep a secret.
    """
    import errno

    full = os.path.join(working_dir, path)
    folder, name = os.path.split(full.rstrip("/"))
    if keep_last and name not in ("", ".", ".."):
        full = os.path.join(os.path.realpath(folder), name)
    else:
        full = os.path.realpath(full)
    for root in (os.path.realpath(working_dir), "/tmp"):
        if full.startswith(root + "/") or (full == root and not keep_last):
            return full
        if full == root:
            raise PathRefused(errno.EXDEV, "%s itself cannot be deleted, only what is in it" % root)
    reason = "the path is outside the sandbox's directories (%s and /tmp)" % working_dir
    raise PathRefused(errno.EXDEV, reason)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _check_regular(mode: int) -> None:
    import errno
    import stat

    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise PathRefused(errno.EINVAL, "not a regular file")


def _open_regular(path: str) -> int:
    _check_regular(os.lstat(path).st_mode)  # opening may have effects of its own
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    _check_regular(os.fstat(fd).st_mode)
    return fd


def _read(path: str, job: Dict[str, Any]) -> None:
    import codecs

    fd = _open_regular(path)
    if job["offset"] > os.fstat(fd).st_size:
        return
    os.lseek(fd, job["offset"], os.SEEK_SET)
    left = job["length"]
    decoder = codecs.getincrementaldecoder(job["encoding"])() if job["encoding"] else None
    while left is None or left > 0:
        data = os.read(fd, 65536 if left is None else min(65536, left))
        if left is not None:
            left -= len(data)
        write_all(1, decoder.decode(data, not data).encode("utf-8", "surrogateescape") if decoder else data)
        if not data:
            break


def _write(path: str, job: Dict[str, Any]) -> None:
    folder = os.path.dirname(path)
    if os.path.lexists(path):
        _check_regular(os.lstat(path).st_mode)
    if job["create_parents"]:
        os.makedirs(folder, 0o755, exist_ok=True)
    # Without a name until it is complete: whatever kills this process leaves nothing behind.
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    if job["content"] is not None:
        write_all(fd, job["content"].encode(job["encoding"] or "utf-8"))
    else:
        while True:
            data = os.read(0, 65536)
            if not data:
                break
            write_all(fd, data)
    os.fchmod(fd, job["mode"])
    prctl(PR_SET_DUMPABLE, 1)  # to see /proc/self/fd
    temporary = os.path.join(folder, ".written-by-%d" % os.getpid())
    # Only with a directory descriptor does os.link use linkat, which follows /proc's links; it is not looked at.
    os.link("/proc/self/fd/%d" % fd, temporary, src_dir_fd=fd, follow_symlinks=True)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    write_all(1, job["report"].encode())


def _delete(path: str, job: Dict[str, Any]) -> None:
    import stat

    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        if not is_directory:
            os.unlink(path)
        elif not job["recursive"]:
            os.rmdir(path)
        else:
            _delete_tree(path)
    except FileNotFoundError:
        if not job["missing_ok"]:
            raise
    write_all(1, job["report"].encode())


def _delete_tree(path: str) -> None:
    for folder, folders, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            full = os.path.join(folder, name)
            if os.path.islink(full):
                os.unlink(full)
            else:
                os.rmdir(full)
    os.rmdir(path)


def _raise(error: OSError) -> NoReturn:
    raise error


def _exists(path: str, job: Dict[str, Any]) -> None:
    write_all(1, b"exists" if os.path.lexists(path) else b"does not exist")


def _list(path: str, job: Dict[str, Any]) -> None:
    import stat

    if stat.S_ISDIR(os.stat(path).st_mode):
        entries = [(name, os.path.join(path, name)) for name in [".", ".."] + sorted(os.listdir(path))]
    else:
        entries = [(job["path"], path)]
    rows = []
    blocks = 0
    for name, full in entries:
        try:
            found = os.lstat(full)
        except OSError:  # gone since it was listed
            continue
        blocks += found.st_blocks // 2
        link = " -> " + os.readlink(full) if stat.S_ISLNK(found.st_mode) else ""
        when = time.strftime("%b %e %H:%M", time.localtime(found.st_mtime))
        row = (stat.filemode(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, found.st_size, when)
        rows.append("%s %3d %d %d %8d %s " % row + name + link)
    text = "\n".join((["total %d" % blocks] if len(entries) > 1 else []) + rows) + "\n"
    write_all(1, text.encode("utf-8", "surrogateescape"))
