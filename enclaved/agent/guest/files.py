"""One thing done to one file, as a job."""

from __future__ import annotations

import json
import os
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
from .content import UploadGap, read_file, write_file
from .expanding import ArchiveRefused
from .limits import MAX_EXCEPTION_TEXT_BYTES
from .packing import read_archive
from .paths import PathRefused, Place, find
from .rows import write_all
from .search import PatternRefused, search_files
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
}
_PAIRS: Dict[str, Callable[[Place, Place, Dict[str, Any]], None]] = {"move": move_file, "copy": copy_file}
_AS_LINKS = ("delete", "stat", "move", "copy")

# Errors that the daemon knows by name; others by their number and text.
_NAMED = (PathRefused, ArchiveRefused, PatternRefused, UploadGap, TargetMissing, FileNotFoundError, FileExistsError)


def run_file_job(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Does one thing to one path, as the user that this process has become."""
    try:
        _do(job, settings)
    except (OSError, UnicodeError, RecursionError, MemoryError) as error:
        kind = next((known.__name__ for known in _NAMED if isinstance(error, known)), type(error).__name__)
        reason = (getattr(error, "strerror", None) or str(error)).encode("utf-8", "replace").decode()
        try:
            os.write(2, ("%s: %s\n" % (job["path"], reason)).encode("utf-8", "replace"))
            number = getattr(error, "errno", None)
            exception = {"type": kind, "message": reason[:MAX_EXCEPTION_TEXT_BYTES], "errno": number}
            control.sendall(encode_claim({"done": True, "exit_code": 1, "exception": exception}))
        finally:
            os._exit(1)
    os._exit(0)


def _do(job: Dict[str, Any], settings: Dict[str, Any]) -> None:
    name, working_dir = job["operation"], settings["working_dir"]
    if name == "wipe":
        write_all(1, json.dumps(wipe(working_dir, settings["scratch_dirs"])).encode())
        return
    place = _found(job["path"], working_dir, name)
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
