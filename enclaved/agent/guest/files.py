"""One thing done to one file, as a job."""

from __future__ import annotations

import json
import os
import signal
import socket

from .changes import (
    TargetMissing,
    copy_file,
    exists,
    list_directory,
    list_lines,
    make_directory,
    move_file,
    remove_file,
    stat_file,
)
from .claims import encode_claim
from .content import FULL, UploadGap, forget_upload, read_file, write_file
from .expanding import ArchiveRefused
from .limits import MAX_EXCEPTION_TEXT_BYTES
from .masks import release_signal
from .packing import read_archive
from .path_rules import check_rules
from .paths import PathRefused, Place, find
from .rows import write_all
from .search import PatternRefused, search_files
from .traces import mounts
from .unpacking import write_archive
from .watch import watch_directory
from .wipe import wipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, NoReturn

# What can be done to a path. A link there is followed, but in those of `_AS_LINKS`.
_OPERATIONS: Dict[str, Callable[[Place, Dict[str, Any]], None]] = {
    "read": read_file,
    "write": write_file,
    "delete": remove_file,
    "list": list_lines,
    "exists": exists,
    "stat": stat_file,
    "scan": list_directory,
    "make_directory": make_directory,
    "search": search_files,
    "watch": watch_directory,
    "read_archive": read_archive,
    "write_archive": write_archive,
    "forget_upload": forget_upload,
}
_PAIRS: Dict[str, Callable[[Place, Place, Dict[str, Any]], None]] = {"move": move_file, "copy": copy_file}
_AS_LINKS = ("delete", "stat", "move", "copy")

# Errors that the daemon knows by name; others by their number and text.
_NAMED = (PathRefused, ArchiveRefused, PatternRefused, UploadGap, TargetMissing, FileNotFoundError, FileExistsError)


class Stopped(BaseException):
    """Nobody wants the work any more (SIGTERM): what is half made goes, and so does this process."""


def run_file_job(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Does one thing to one path, as the user that this process has become."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        release_signal(signal.SIGTERM)
        _do(job, settings)
    except Stopped:
        os._exit(128 + signal.SIGTERM)
    except (OSError, UnicodeError, RecursionError, MemoryError) as error:
        kind = next((known.__name__ for known in _NAMED if isinstance(error, known)), type(error).__name__)
        reason = (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace").decode()
        try:
            if getattr(error, "errno", None) in FULL:
                reason += _room(job, settings)
            os.write(2, ("%s: %s\n" % (job["path"], reason)).encode("utf-8", "replace"))
            number = getattr(error, "errno", None)
            exception = {"type": kind, "message": reason[:MAX_EXCEPTION_TEXT_BYTES], "errno": number}
            control.sendall(encode_claim({"done": True, "exit_code": 1, "exception": exception}))
        finally:
            os._exit(1)
    os._exit(0)


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # while we clean up
    raise Stopped


def _room(job: Dict[str, Any], settings: Dict[str, Any]) -> str:
    """Says how much room there is where the job writes, now that what was half written is gone."""
    target = job["target_path"] or job["path"]
    root = "/tmp" if os.path.join(settings["working_dir"], target).startswith("/tmp/") else settings["working_dir"]
    try:
        found = os.statvfs(root)
    except OSError:
        return ""
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    room = "%s has %d bytes free of %d" % (root, free, size)
    if free and found.f_files and not found.f_favail:
        room = "%s has room for no more files" % root
    limit = settings["file_size_limit_bytes"]
    return ": a file here has at most %d bytes, and %s" % (limit, room) if limit else ": " + room


def _do(job: Dict[str, Any], settings: Dict[str, Any]) -> None:
    name, working_dir = job["operation"], settings["working_dir"]
    if name == "wipe":
        report = dict(wipe(working_dir, settings["scratch_dirs"]), mounts=mounts(settings["owns_mounts"]))
        write_all(1, json.dumps(report).encode())
        return
    place = _found(job["path"], working_dir, name)
    check_rules(place, job, working_dir)
    if name in _PAIRS:
        _PAIRS[name](place.check_parents(), find(job["target_path"], working_dir, follow=False), job)
    else:
        _OPERATIONS[name](place, job)


def _found(path: str, working_dir: str, operation: str) -> Place:
    if operation != "stat":
        return find(path, working_dir, follow=operation not in _AS_LINKS)
    try:
        return find(path, working_dir, follow=False)
    except PathRefused:  # perhaps one of the two directories themselves, which may be looked at
        return find(path, working_dir)
