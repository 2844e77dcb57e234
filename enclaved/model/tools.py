"""What tools are, and the jobs that they plan."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A tool as callers see it."""

    name: str
    aliases: tuple[str, ...]
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImportRules:
    """What a program may import, by the names of modules; what is in a module goes with it. A guard rail."""

    allowed: tuple[str, ...] | None = None
    """``None``: everything that is not blocked."""
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathRules:
    """What a `FileJob` may touch: absolute paths, or paths below the working directory, with what is in them."""

    allowed: tuple[str, ...] | None = None
    """``None``: everything that is not blocked."""
    blocked: tuple[str, ...] = ()
    size_max_bytes: int | None = None
    """Largest file that may be read."""


@dataclass(frozen=True, slots=True)
class PythonJob:
    """Runs Python source: in the named context, or (``context=None``) in a fresh interpreter."""

    code: str
    context: str | None = "default"
    imports: ImportRules | None = None


@dataclass(frozen=True, slots=True)
class CommandJob:
    """Runs a command: ``argv`` as it is, or ``shell`` through the image's bash (else sh)."""

    argv: tuple[str, ...] = ()
    shell: str | None = None


class FileOperation(enum.StrEnum):
    """What a `FileJob` does."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    EXISTS = "exists"
    WIPE = "wipe"
    STAT = "stat"
    SCAN = "scan"
    MAKE_DIRECTORY = "make_directory"
    MOVE = "move"
    COPY = "copy"
    SEARCH = "search"
    WATCH = "watch"
    READ_ARCHIVE = "read_archive"
    WRITE_ARCHIVE = "write_archive"
    FORGET_UPLOAD = "forget_upload"


@dataclass(frozen=True, slots=True)
class FileJob:
    """Does one thing to one path, as the sandbox's user, inside the working directory or /tmp.

    A read writes the file's bytes to stdout, from ``offset``, at most ``length`` (``None``: all). A write takes its
    bytes from ``content`` or, if that is ``None``, from stdin until end of input, and renames the result into place.
    A list writes long lines as ``ls -la`` does. Exists writes ``exists`` or ``does not exist``. Write and delete write
    ``report`` when they are done. A wipe empties every place that the user may write to, whatever its path, and writes
    a JSON object with the numbers ``removed`` and ``left``. A failure is an exception of the program
    (``FileNotFoundError``, ...), with its text on stderr.
    Stat, scan (a listing), search and watch write JSON lines; archives are tar on stdout or stdin.
    Forget removes what has arrived of an upload that was cut.
    ``encoding`` transcodes text between the file and UTF-8 on the channel; ``None`` moves bytes as they are.
    """

    operation: FileOperation
    path: str
    content: str | None = None
    encoding: str | None = None
    mode: int = 0o644
    create_parents: bool = False
    offset: int = 0
    length: int | None = None
    report: str = ""
    recursive: bool = False
    """For a delete, copy, scan or watch: directories with all that is in them."""
    missing_ok: bool = False
    """For a delete: nothing there is fine."""
    target_path: str = ""
    """For a move or copy: where to."""
    replace: bool = False
    """For a move or copy: a file that is there may be replaced."""
    glob: str = ""
    """For a scan or search: only paths that match; empty: all."""
    pattern: str = ""
    """For a search: a regular expression, or with ``literal`` a text."""
    literal: bool = False
    ignore_case: bool = False
    matches_max: int = 0
    gzip: bool = False
    """For reading an archive: compress it."""
    names: tuple[str, ...] = ()
    """For reading an archive: only these files, by their paths below the directory; empty: everything."""
    upload_id: str = ""
    """For a write: names what has arrived, so that ``offset`` can go on there; empty: nothing is kept."""
    rules: PathRules | None = None
    """For operations on one path: what of it is allowed; a path is compared after its links were followed."""


Job = PythonJob | CommandJob | FileJob
