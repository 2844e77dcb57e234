"""What file jobs write to their standard output."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it, however long the reader takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Rows:
    """JSON lines, some at a time."""

    def __init__(self, lines_max: int = 256) -> None:
        self._lines: List[str] = []
        self._lines_max = lines_max

    def add(self, row: Any) -> None:
        """Adds a row."""
        self._lines.append(json.dumps(row))
        if len(self._lines) >= self._lines_max:
            self.flush()

    def flush(self) -> None:
        """Writes what has not been written."""
        if self._lines:
            write_all(1, ("\n".join(self._lines) + "\n").encode())
            self._lines = []


def file_row(path: str, found: os.stat_result, folder: int, name: str) -> List[Any]:
    """Describes a file, directory or link. Raises FileNotFoundError for a link that is gone."""
    import stat

    mode = found.st_mode
    kind = "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"
    target = ""
    if stat.S_ISLNK(mode):
        kind, target = "link", os.readlink(name, dir_fd=folder)
    return [path, kind, found.st_size, stat.S_IMODE(mode), found.st_mtime_ns, found.st_uid, target]
