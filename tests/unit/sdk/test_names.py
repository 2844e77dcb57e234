"""The names that users import are where the documentation says."""

from __future__ import annotations

import importlib

import pytest

DOCUMENTED = {
    "ms_enclave.sandbox": [
        "DockerSandbox",
        "DockerSandboxConfig",
        "HttpSandboxManager",
        "LocalSandboxManager",
        "Sandbox",
        "SandboxFactory",
        "SandboxManager",
        "SandboxManagerFactory",
        "SandboxServer",
        "SandboxType",
        "Tool",
        "ToolFactory",
        "create_server",
        "register_tool",
    ],
    "ms_enclave.sandbox.boxes": [
        "DockerNotebookSandbox",
        "DockerSandbox",
        "Sandbox",
        "SandboxFactory",
        "register_sandbox",
    ],
    "ms_enclave.sandbox.model": [
        "CommandResult",
        "DockerNotebookConfig",
        "DockerSandboxConfig",
        "ExecuteCodeRequest",
        "ExecuteCommandRequest",
        "ExecutionStatus",
        "FileOperationConfig",
        "FileOperationRequest",
        "HealthCheckResult",
        "PythonExecutorConfig",
        "ReadFileRequest",
        "SandboxConfig",
        "SandboxInfo",
        "SandboxManagerConfig",
        "SandboxManagerType",
        "SandboxStatus",
        "SandboxType",
        "ShellExecutorConfig",
        "ToolConfig",
        "ToolExecutionRequest",
        "ToolResult",
        "ToolType",
        "VolcengineSandboxConfig",
        "VolcengineSandboxManagerConfig",
        "WriteFileRequest",
    ],
    "ms_enclave.sandbox.server": ["SandboxServer", "create_server"],
    "ms_enclave.sandbox.server.server": ["SandboxServer", "create_server"],
    "ms_enclave.sandbox.manager": [
        "HttpSandboxManager",
        "LocalSandboxManager",
        "SandboxManager",
        "SandboxManagerFactory",
        "VolcengineSandboxManager",
    ],
    "ms_enclave.sandbox.tools": [
        "FileOperation",
        "PythonExecutor",
        "ShellExecutor",
        "Tool",
        "ToolFactory",
        "register_tool",
    ],
    "ms_enclave.sandbox.sync": [
        "HttpSandboxManager",
        "LocalSandboxManager",
        "Sandbox",
        "SandboxFactory",
        "SandboxManager",
        "SandboxManagerFactory",
    ],
    "ms_enclave.errors": ["EnclaveError"],
}


@pytest.mark.parametrize("module", sorted(DOCUMENTED))
def test_documented_names_are_public(module: str) -> None:
    found = importlib.import_module(module)
    assert set(DOCUMENTED[module]) <= set(found.__all__)
    for name in found.__all__:
        assert hasattr(found, name)


@pytest.mark.parametrize("module", sorted(DOCUMENTED))
def test_public_names_are_sorted_and_described(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__all__ == sorted(found.__all__)
    assert found.__doc__
    for name in found.__all__:
        value = getattr(found, name)
        if isinstance(value, type):
            assert value.__doc__, name
