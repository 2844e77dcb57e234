"""Reads, writes, deletes, lists and looks for files in a sandbox."""

from __future__ import annotations

import codecs
import encodings
import pkgutil
from encodings.aliases import aliases as _aliases
from typing import Annotated

from pydantic import Field, WithJsonSchema

from enclaved.errors import InvalidRequest
from enclaved.model import FileJob, PathRules
from enclaved.model import FileOperation as Operation
from enclaved.tools.base import Strict, Tool, check_argument, refused
from enclaved.tools.restrictions import FileOptions

PATH_LIMIT_BYTES = 4096

_OPERATIONS = ("create", "read", "write", "delete", "list", "exists")
_OF_FILES = ("create", "read", "write", "delete")
"""Operations to which `FileOptions.allowed_extensions` and ``max_file_size`` apply; others look at directories."""
_CODECS = frozenset(_aliases) | {module.name for module in pkgutil.iter_modules(encodings.__path__)}


class FileParams(Strict):
    """What a call may say. An unknown operation is the tool's to refuse, with the documented text."""

    operation: Annotated[str, WithJsonSchema({"type": "string", "enum": list(_OPERATIONS)})] = Field(
        description="Type of file operation to perform"
    )
    file_path: str = Field(description="Path to the file or directory")
    content: Annotated[str | None, WithJsonSchema({"type": "string"})] = Field(
        default=None, description="Content of the file (for write, and optionally for create)"
    )
    encoding: str = Field(default="utf-8", description="File encoding")


class FileOperationTool(Tool):
    """Does one thing to one path, as the sandbox's user.

    ``create`` and ``write`` make a file or replace one; only ``write`` needs ``content``.
    Both make missing parent directories.
    """

    name = "file_operation"
    aliases = ()
    description = "Create, read, write, delete, list and look for files"
    Params = FileParams
    Options = FileOptions

    def plan(self, params: FileParams, options: FileOptions) -> FileJob:
        """Plans the operation. Refuses impossible names, unknown operations and encodings, and what is excluded.

        What depends on links and on what is there, the guest refuses.
        """
        path = params.file_path
        if not path.strip():
            raise refused("file_path", "No file path provided")
        check_argument("file_path", path, PATH_LIMIT_BYTES, "use a shorter path")
        encoding = _encoding(params.encoding)
        rules = options.path_rules()
        if params.operation in _OF_FILES:
            options.check_name(path)
            options.check_size(params.content or "", encoding or "utf-8")
        match params.operation:
            case "create":
                return _write(path, params.content or "", encoding, rules)
            case "write":
                if params.content is None:
                    raise refused("content", "Content is required for write operation")
                return _write(path, params.content, encoding, rules)
            case "read":
                return FileJob(Operation.READ, path, encoding=encoding, rules=rules)
            case "delete":
                report = f"Successfully deleted: {path}"
                return FileJob(Operation.DELETE, path, report=report, recursive=True, missing_ok=True, rules=rules)
            case "list":
                return FileJob(Operation.LIST, path, rules=rules)
            case "exists":
                return FileJob(Operation.EXISTS, path, rules=rules)
            case unknown:
                raise refused("operation", f"Unknown operation: {unknown[:100]}")


def _write(path: str, content: str, encoding: str | None, rules: PathRules | None) -> FileJob:
    return FileJob(
        Operation.WRITE,
        path,
        content=content,
        encoding=encoding,
        create_parents=True,
        report=f"File written successfully: {path}",
        rules=rules,
    )


def _encoding(name: str) -> str | None:
    """Finds a text encoding by any of its names; ``None`` for UTF-8, which needs no conversion.

    Raises `InvalidRequest`. Names that Python's own codecs do not have never reach ``codecs.lookup``: it remembers
    every name it was ever asked for.
    """
    normal = encodings.normalize_encoding(name[:100]).lower()
    if len(name) <= 100 and name.isascii() and {normal, normal.replace(".", "_")} & _CODECS:
        try:
            codec = codecs.lookup(normal)
            "".encode(codec.name)
        except (LookupError, UnicodeError):
            pass  # a module of that package without a codec, a codec that is not for text, or "undefined"
        else:
            return None if codec.name == "utf-8" else codec.name
    text = f"unknown text encoding {name[:100]!a}; use a name that Python knows, such as utf-8 or latin-1"
    raise InvalidRequest.of("parameters.encoding", text)
