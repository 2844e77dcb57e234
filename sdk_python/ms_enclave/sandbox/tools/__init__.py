"""Tools: those of the daemon, and how to make your own."""

from ms_enclave.sandbox.tools.base import Tool, ToolFactory, register_tool
from ms_enclave.sandbox.tools.sandbox_tools import FileOperation, PythonExecutor, SandboxTool, ShellExecutor

__all__ = [
    "FileOperation",
    "PythonExecutor",
    "SandboxTool",
    "ShellExecutor",
    "Tool",
    "ToolFactory",
    "register_tool",
]
