"""Files of a sandbox, and what happens to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FileType(enum.StrEnum):
    """What a path is."""

    REGULAR = "file"
    DIRECTORY = "directory"
    SYMLINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file, directory or link, as the sandbox shows it."""

    path: str
    type: FileType
    size_bytes: int
    mode: int
    modified_ns: int
    """Nanoseconds since 1970."""
    uid: int
    link_target: str = ""


class ChangeKind(enum.StrEnum):
    """What happened in a directory that is watched."""

    READY = "ready"
    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"
    ATTRIBUTES = "attributes"
    OVERFLOW = "overflow"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change in a directory that is watched."""

    kind: ChangeKind
    path: str
    is_directory: bool


@dataclass(frozen=True, slots=True)
class SearchMatch:
    """A line that matches. ``None`` in its place says that there are more."""

    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of an archive."""

    entries: int
    size_bytes: int
