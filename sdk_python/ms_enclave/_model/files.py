"""Files of a sandbox, and what happens to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class FileType(enum.StrEnum):
    """What a path is."""

    REGULAR = "file"
    DIRECTORY = "directory"
    SYMLINK = "link"
    OTHER = "other"
    """A pipe, a socket or a device."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file, directory or link of a sandbox at one moment."""

    path: str
    """Its path, absolute. Bytes of a name that are not UTF-8 are shown as U+FFFD."""
    type: FileType
    size_bytes: int
    mode: int
    """Permission bits."""
    modified_at: datetime
    """When its content last changed, in local time."""
    uid: int
    """User id of its owner."""
    link_target: str = ""
    """Where a link leads."""


class ChangeKind(enum.StrEnum):
    """What happened in a directory that is watched."""

    CREATED = "created"
    """Something new is there, or came by a move."""
    MODIFIED = "modified"
    """A file was written to and closed."""
    REMOVED = "removed"
    """Something is gone, or left by a move."""
    ATTRIBUTES = "attributes"
    """Permissions, owner or times changed."""
    OVERFLOW = "overflow"
    """Changes were lost, since they came faster than they were read; look for yourself."""
    GONE = "gone"
    """The directory itself is gone; nothing follows."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change in a directory that is watched."""

    kind: ChangeKind
    path: str = ""
    """What changed; empty for an overflow."""
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class SearchMatch:
    """A line that matches."""

    path: str
    line: int
    """Counted from 1."""
    text: str
    """At most 1000 characters of it."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The lines that match."""

    matches: tuple[SearchMatch, ...]
    truncated: bool
    """Whether there are more than were asked for."""
