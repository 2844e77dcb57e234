"""What a state directory may hold that nobody needs: directories of sandboxes, half-written files, earlier guests.

Only names that a daemon gives are looked at. Whatever else lies in a state directory is somebody's, and stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

SANDBOXES: Final = "s"
GUESTS: Final = "guest"
_DIRECTORY: Final = re.compile(r"[0-9a-f]{8}")
_HALF_KEY: Final = re.compile(r"\.key\.(\d+)")
_GUEST: Final = re.compile(r"guest-[0-9a-f]{16}\.py")
_HALF_GUEST: Final = re.compile(r"\.guest-[0-9a-f]{16}\.py\.(\d+)")


class Place(NamedTuple):
    """Something on the disk. A later thing under the same path has another inode."""

    path: Path
    inode: int


def directories(state_dir: Path, owned: Collection[Path] = ()) -> Iterator[Place]:
    """Finds the directories of sandboxes, but for those that somebody owns. Blocks. Raises `OSError`."""
    for entry in _entries(state_dir / SANDBOXES):
        path = Path(entry.path)
        if _DIRECTORY.fullmatch(entry.name) and path not in owned and entry.is_dir(follow_symlinks=False):
            yield Place(path, entry.inode())


def half_written(state_dir: Path) -> Iterator[Place]:
    """Finds files that a daemon began to write when it was killed. Blocks. Raises `OSError`."""
    for folder, pattern in ((state_dir, _HALF_KEY), (state_dir / GUESTS, _HALF_GUEST)):
        for entry in _entries(folder):
            found = pattern.fullmatch(entry.name)
            if found and int(found[1]) != os.getpid():
                yield Place(Path(entry.path), entry.inode())


def earlier_guests(state_dir: Path, current: Path | None) -> Iterator[Place]:
    """Finds guests but the current one. Sandboxes that were made before an upgrade need theirs. Blocks."""
    for entry in _entries(state_dir / GUESTS):
        if _GUEST.fullmatch(entry.name) and (current is None or entry.name != current.name):
            yield Place(Path(entry.path), entry.inode())


def is_there(place: Place) -> bool:
    """Whether it is still the same thing."""
    try:
        return place.path.lstat().st_ino == place.inode
    except OSError:
        return False


def remove(place: Place) -> None:
    """Removes it if it is still the same thing. Links are removed, not followed. Blocks. Raises `OSError`."""
    if is_there(place):
        if place.path.is_dir() and not place.path.is_symlink():
            shutil.rmtree(place.path)
        else:
            place.path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """How much of the disk it takes, with all below it, as far as that can be seen. Blocks."""
    try:
        found = path.lstat()
        total = found.st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            total += sum(size_bytes(Path(entry.path)) for entry in _entries(path))
    except OSError:
        return 0
    return total


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except FileNotFoundError:
        return []
