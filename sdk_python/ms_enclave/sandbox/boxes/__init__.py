"""Sandboxes: the objects that users hold, and how to make them."""

from ms_enclave._model.unserved import VolcengineSandbox
from ms_enclave.sandbox.boxes.base import Sandbox, SandboxFactory, register_sandbox
from ms_enclave.sandbox.boxes.docker import DockerNotebookSandbox, DockerSandbox, ExecutionContext

__all__ = [
    "DockerNotebookSandbox",
    "DockerSandbox",
    "ExecutionContext",
    "Sandbox",
    "SandboxFactory",
    "VolcengineSandbox",
    "register_sandbox",
]
