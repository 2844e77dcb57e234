"""Managers: they keep many sandboxes by id."""

from ms_enclave._model import SandboxManagerType
from ms_enclave._model.unserved import VolcengineSandboxManager
from ms_enclave.sandbox.manager.base import SandboxManager, SandboxManagerFactory, register_manager
from ms_enclave.sandbox.manager.http import HttpSandboxManager
from ms_enclave.sandbox.manager.local import LocalSandboxManager

__all__ = [
    "HttpSandboxManager",
    "LocalSandboxManager",
    "SandboxManager",
    "SandboxManagerFactory",
    "SandboxManagerType",
    "VolcengineSandboxManager",
    "register_manager",
]
