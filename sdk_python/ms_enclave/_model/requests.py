"""The documented requests, for programs that build or check bodies of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ToolExecutionRequest(_Request):
    """Runs a tool in a sandbox."""

    sandbox_id: str = Field(description="The sandbox")
    tool_name: str = Field(description="The tool, by name or alias")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Its parameters")


class ExecuteCodeRequest(_Request):
    """Runs Python source: the parameters of ``python_executor``."""

    code: str = Field(description="The source")
    timeout: int | float | None = Field(default=None, ge=0, description="Seconds that it may run")


class ExecuteCommandRequest(_Request):
    """Runs a command: the parameters of ``shell_executor``."""

    command: str | list[str] = Field(description="A string for a shell, or a program with its arguments")
    timeout: int | float | None = Field(default=None, ge=0, description="Seconds that it may run")


class FileOperationRequest(_Request):
    """Does one thing to one path: the parameters of ``file_operation``."""

    operation: Literal["create", "read", "write", "delete", "list", "exists"] = Field(description="What to do")
    file_path: str = Field(description="The file or directory")
    content: str | None = Field(default=None, description="What to write")
    encoding: str = Field(default="utf-8", description="Encoding of the file")


class ReadFileRequest(_Request):
    """Reads a text file."""

    file_path: str = Field(description="The file")
    encoding: str = Field(default="utf-8", description="Its encoding")


class WriteFileRequest(_Request):
    """Writes a text file."""

    file_path: str = Field(description="The file")
    content: str = Field(description="What to write")
    encoding: str = Field(default="utf-8", description="Its encoding")
