"""Every runtime keeps the runtime's contract, and every tool the tool's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.runtime.docker import DockerRuntime, detect_engine_url
from enclaved.testing.contracts import RuntimeContract, ToolContract
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from enclaved.tools.file_operation import FileOperationTool
from enclaved.tools.python_executor import PythonExecutorTool
from enclaved.tools.shell_executor import ShellExecutorTool


class TestSubprocessRuntime(RuntimeContract):
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[SubprocessRuntime]:
        made = SubprocessRuntime()
        yield made
        await made.close()


class TestSubprocessRuntimeAttached(TestSubprocessRuntime):
    attached = True


@pytest.mark.docker
class TestDockerRuntime(RuntimeContract):
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[DockerRuntime]:
        made = DockerRuntime(detect_engine_url(), image_aliases={"python:3.11-slim": "ms-enclave/python:3.11"})
        yield made
        await made.close()


@pytest.mark.docker
class TestDockerRuntimeAttached(TestDockerRuntime):
    attached = True


class TestPythonExecutor(ToolContract):
    make = PythonExecutorTool
    calls = ({"code": "print(1)"}, {"code": "print(1)", "isolated": True, "timeout": 5})


class TestShellExecutor(ToolContract):
    make = ShellExecutorTool
    calls = ({"command": "ls"}, {"command": ["ls", "-l"], "timeout": 0})


class TestFileOperation(ToolContract):
    make = FileOperationTool
    calls = (
        {"operation": "write", "file_path": "a", "content": "text", "encoding": "latin-1"},
        {"operation": "create", "file_path": "a"},
        {"operation": "read", "file_path": "a"},
        {"operation": "list", "file_path": "."},
        {"operation": "delete", "file_path": "a"},
        {"operation": "exists", "file_path": "a"},
    )
