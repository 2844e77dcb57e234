"""Options with which whoever creates a sandbox restricts its tools: their types, and what a plan makes of them.

Most of them are guard rails: they keep a caller of the tool, such as a language model, to what was meant, and say so
when it strays. The walls are the sandbox itself. Each description says which of the two it is.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from enclaved.model import ImportRules, PathRules
from enclaved.tools.base import Timed, refused
from enclaved.tools.command_names import Unreadable, command_names, words

ENTRIES_MAX = 256
"""Entries of one list."""
_SIZE_MAX_BYTES = 2**40

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_COMMAND = re.compile(r"[^\s\x00-\x1f\x7f]{1,255}")
_EXTENSION = re.compile(r"(\.?[^\s\x00-\x1f\x7f/.][^\s\x00-\x1f\x7f/]{0,63})?")


def _module(value: str) -> str:
    if len(value) > 255 or not _MODULE.fullmatch(value):
        raise ValueError("must be the name of a module, as 'math' or 'xml.etree', without wildcards")
    return value


def _command(value: str) -> str:
    if not _COMMAND.fullmatch(value):
        raise ValueError("must be the name or the path of one command, without arguments")
    return value


def _path(value: str) -> str:
    if not value or "\0" in value or len(value.encode()) > 4096:
        raise ValueError("must be a path, absolute or relative to the working directory")
    return value


def _extension(value: str) -> str:
    if not _EXTENSION.fullmatch(value):
        raise ValueError("must be an extension, as '.txt' or 'txt', or '' for names without one")
    return value


def _shell(value: str) -> str:
    if not value.startswith("/") or not _COMMAND.fullmatch(value):
        raise ValueError("must be the absolute path of a shell in the image, as /bin/sh")
    return value


_Modules = Annotated[list[Annotated[str, AfterValidator(_module)]], Field(max_length=ENTRIES_MAX)]
_Commands = Annotated[list[Annotated[str, AfterValidator(_command)]], Field(max_length=ENTRIES_MAX)]
_Paths = Annotated[list[Annotated[str, AfterValidator(_path)]], Field(max_length=ENTRIES_MAX)]
_Extensions = Annotated[list[Annotated[str, AfterValidator(_extension)]], Field(max_length=ENTRIES_MAX)]
_Size = Annotated[int, Field(ge=1, le=_SIZE_MAX_BYTES)]


class Programs(Timed):
    """Options of tools that run programs."""

    max_output_size: _Size | None = Field(
        default=None,
        description="Bytes of output at most, stdout and stderr together; more ends the execution. A wall",
    )


class PythonOptions(Programs):
    """Options of ``python_executor``."""

    python_path: Literal["python3"] = Field(
        default="python3", description="The image's python3; another interpreter cannot be chosen here"
    )
    allowed_modules: _Modules | None = Field(
        default=None, description="Modules that the program may import, with what is in them; null: all. A guard rail"
    )
    blocked_modules: _Modules = Field(
        default=[], description="Modules that the program may not import, nor what is in them. A guard rail"
    )

    def import_rules(self) -> ImportRules | None:
        """What a program may import; ``None``: everything."""
        if self.allowed_modules is None and not self.blocked_modules:
            return None
        allowed = None if self.allowed_modules is None else tuple(self.allowed_modules)
        return ImportRules(allowed, tuple(self.blocked_modules))


class ShellOptions(Programs):
    """Options of ``shell_executor``, which hold for the documented ``execute_command`` as well (but ``timeout``)."""

    shell_path: Annotated[str, AfterValidator(_shell)] | None = Field(
        default=None, description="The shell that runs strings; not set: the image's bash, else its sh"
    )
    allowed_commands: _Commands | None = Field(
        default=None,
        description="Commands that may be run, by their names as they are written; null: all. A guard rail",
    )
    blocked_commands: _Commands = Field(default=[], description="Commands that may not be run. A guard rail")

    def check(self, command: str | list[str]) -> None:
        """Raises `InvalidRequest` for a script or an argv that runs what it may not run."""
        if self.allowed_commands is None and not self.blocked_commands:
            return
        try:
            names = command_names(command) if isinstance(command, str) else (command[0],)
        except Unreadable as error:
            self._check_unreadable(str(command), str(error))
            return
        for name in names:
            if name in self.blocked_commands or posixpath.basename(name) in self.blocked_commands:
                raise refused("command", f"Command not allowed: {name[:100]} (blocked_commands)")
            if self.allowed_commands is not None and name not in self.allowed_commands:
                known = ", ".join(self.allowed_commands)[:200] or "none"
                raise refused("command", f"Command not allowed: {name[:100]} (allowed_commands: {known})")

    def _check_unreadable(self, script: str, cause: str) -> None:
        if self.allowed_commands is not None:
            text = f"Command not allowed: with {cause} it cannot be compared with allowed_commands; use plain commands"
            raise refused("command", text)
        for name in sorted(words(script)):
            if name in self.blocked_commands or posixpath.basename(name) in self.blocked_commands:
                raise refused("command", f"Command not allowed: {name[:100]} (blocked_commands)")


class FileOptions(Timed):
    """Options of ``file_operation``. They bind this tool only, not programs in the sandbox nor the file service."""

    allowed_paths: _Paths | None = Field(
        default=None,
        description="Paths that the tool may touch, with what is in them; null: all. Holds for the tool",
    )
    blocked_paths: _Paths = Field(default=[], description="Paths that the tool may not touch. Holds for the tool")
    max_file_size: _Size | None = Field(
        default=None, description="Bytes that the tool writes to a file or reads of one, at most. Holds for the tool"
    )
    allowed_extensions: _Extensions | None = Field(
        default=None,
        description="Extensions of files that the tool may write, read and delete; null: all. Holds for the tool",
    )

    def path_rules(self) -> PathRules | None:
        """What the guest has to look at; ``None``: nothing."""
        if self.allowed_paths is None and not self.blocked_paths and self.max_file_size is None:
            return None
        allowed = None if self.allowed_paths is None else tuple(self.allowed_paths)
        return PathRules(allowed, tuple(self.blocked_paths), self.max_file_size)

    def check_name(self, path: str) -> None:
        """Raises `InvalidRequest` for a file with an extension that is not allowed."""
        if self.allowed_extensions is None:
            return
        name = posixpath.basename(path.rstrip("/")).lower()
        extension = posixpath.splitext(name)[1]
        wanted = [each.lower().lstrip(".") for each in self.allowed_extensions]
        if not any(name.endswith(f".{each}") if each else not extension for each in wanted):
            known = ", ".join(f".{each}" if each else "none" for each in wanted)[:200] or "no file"
            raise refused("file_path", f"File extension not allowed: {name[-100:]} (allowed_extensions: {known})")

    def check_size(self, content: str, encoding: str) -> None:
        """Raises `InvalidRequest` for content that is too large. What cannot be encoded is the guest's to refuse."""
        if self.max_file_size is None:
            return
        size_bytes = len(content.encode(encoding, "replace"))
        if size_bytes > self.max_file_size:
            text = f"File too large: {size_bytes} bytes, and at most {self.max_file_size} are allowed (max_file_size)"
            raise refused("content", text)
