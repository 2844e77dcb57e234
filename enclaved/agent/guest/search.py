"""Looking for lines in files."""

from __future__ import annotations

import errno
import os
import stat

from .globs import matcher
from .paths import PathRefused, open_regular, tree
from .rows import Rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Tuple

    from .paths import Place

LINE_CHARS_MAX = 1000
LINE_BYTES_MAX = 1024 * 1024
BINARY_BYTES = 8192


class PatternRefused(OSError):
    """What is no regular expression."""


def search_files(place: Place, job: Dict[str, Any]) -> None:
    """Writes each line that matches as a row: path, number and text; last, whether there are more."""
    import re

    pattern = re.escape(job["pattern"]) if job["literal"] else job["pattern"]
    try:
        wanted = re.compile(pattern, re.IGNORECASE if job["ignore_case"] else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternRefused(errno.EINVAL, "is no regular expression: %s" % error) from None
    rows = Rows(16)
    left = job["matches_max"]
    for path, folder, name in _files(place, job["glob"]):
        try:
            fd = open_regular(folder, name)
        except OSError:  # gone, or not to be read
            continue
        with os.fdopen(fd, "rb") as file:
            for number, line in _lines(file):
                if wanted.search(line):
                    if left == 0:
                        rows.add({"truncated": True})
                        rows.flush()
                        return
                    left -= 1
                    rows.add([path, number, line[:LINE_CHARS_MAX]])
    rows.flush()


def _files(place: Place, glob: str) -> Iterator[Tuple[str, int, str]]:
    mode = place.stat().st_mode
    if stat.S_ISREG(mode):
        yield place.path, place.folder, place.name
        return
    if not stat.S_ISDIR(mode):
        raise PathRefused(errno.EINVAL, "neither a regular file nor a directory")
    matches = matcher(glob)
    for folder, path, found in tree(place.open_folder(), tolerant=True):
        if stat.S_ISREG(found.st_mode) and matches(path):
            yield os.path.join(place.path, path), folder, os.path.basename(path)


def _lines(file: Any) -> Iterator[Tuple[int, str]]:
    """The lines of a text file with their numbers; a very long one comes in parts that have the same number."""
    if b"\0" in file.peek(BINARY_BYTES)[:BINARY_BYTES]:
        return
    number = 1
    while True:
        line = file.readline(LINE_BYTES_MAX)
        if not line:
            return
        yield number, line.decode("utf-8", "replace").rstrip("\r\n")
        if line.endswith(b"\n"):
            number += 1
