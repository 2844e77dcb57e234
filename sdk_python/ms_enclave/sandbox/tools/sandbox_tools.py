"""The daemon's tools: they run in the sandbox, and these classes only name and describe them.

What a daemon says about a tool (once a sandbox runs) takes the place of what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ms_enclave._model import ExecutionOptions, SandboxType, ToolInfo, ToolResult
from ms_enclave.sandbox.tools.base import Tool, register_tool

if TYPE_CHECKING:
    from ms_enclave.sandbox.boxes.base import Sandbox

_TIMEOUT = {"type": "integer", "description": "Execution timeout in seconds", "default": 30}


def _object(required: list[str], **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


class SandboxTool(Tool):
    """A tool of the daemon. Base of those that have a class of their own; plug-ins of a daemon need none."""

    tool_name: ClassVar[str] = ""
    tool_description: ClassVar[str] = ""
    tool_parameters: ClassVar[Mapping[str, Any]] = _object([])

    def __init__(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            name=name or self.tool_name,
            description=description or self.tool_description,
            parameters=parameters or self.tool_parameters,
            **options,
        )

    @classmethod
    def from_info(cls, info: ToolInfo) -> SandboxTool:
        """Makes the tool that a daemon describes."""
        parameters = info.schema["function"]["parameters"]
        return cls(name=info.name, description=info.description, parameters=parameters)

    @property
    def required_sandbox_types(self) -> list[SandboxType] | None:
        return [SandboxType.DOCKER]

    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> ToolResult:
        """Runs it in the sandbox."""
        return await self.execute_with(sandbox, None, **parameters)

    async def execute_with(
        self, sandbox: Sandbox, options: ExecutionOptions | None, /, **parameters: Any
    ) -> ToolResult:
        """Runs it in the sandbox as ``options`` say."""
        if self.timeout is not None and "timeout" in self.parameters.get("properties", {}):
            parameters.setdefault("timeout", self.timeout)
        if options is None:
            return await sandbox.run_tool(self.name, parameters)
        return await sandbox.run_tool(self.name, parameters, options=options)


@register_tool("python_executor")
class PythonExecutor(SandboxTool):
    """Runs Python source. Variables live from call to call unless a call says ``isolated``."""

    tool_name = "python_executor"
    tool_description = "Execute Python code in an isolated environment; variables are kept between calls"
    tool_parameters = _object(
        ["code"],
        code={"type": "string", "description": "Python code to execute"},
        isolated={
            "type": "boolean",
            "description": "Run in a fresh interpreter that shares no variables with other calls",
            "default": False,
        },
        timeout=_TIMEOUT,
    )


@register_tool("shell_executor")
class ShellExecutor(SandboxTool):
    """Runs a string through a shell, or a list as a program with its arguments."""

    tool_name = "shell_executor"
    tool_description = "Execute shell commands in an isolated environment"
    tool_parameters = _object(
        ["command"],
        command={
            "anyOf": [
                {"type": "string", "description": "Shell command to execute"},
                {
                    "type": "array",
                    "description": "Program and arguments to execute without a shell",
                    "items": {"type": "string"},
                },
            ]
        },
        timeout=_TIMEOUT,
    )


@register_tool("file_operation")
class FileOperation(SandboxTool):
    """Creates, reads, writes, deletes, lists and looks for files."""

    tool_name = "file_operation"
    tool_description = "Create, read, write, delete, list and look for files"
    tool_parameters = _object(
        ["operation", "file_path"],
        operation={
            "type": "string",
            "description": "Type of file operation to perform",
            "enum": ["create", "read", "write", "delete", "list", "exists"],
        },
        file_path={"type": "string", "description": "Path to the file or directory"},
        content={"type": "string", "description": "Content of the file (for write, and optionally for create)"},
        encoding={"type": "string", "description": "File encoding", "default": "utf-8"},
    )
