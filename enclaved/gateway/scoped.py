"""Which method of the contract each route is, for the one table of scopes. What is not listed here is not there."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Refusal(NamedTuple):
    """No route fits."""

    allowed: tuple[str, ...]
    """The methods with which there is one at this path."""


_ROUTES: Final = (
    ("GET", "/health", "SystemService.GetInfo"),
    ("GET", "/stats", "SystemService.GetInfo"),
    ("GET", "/docs", "ServerReflection.ServerReflectionInfo"),
    ("GET", "/openapi.json", "ServerReflection.ServerReflectionInfo"),
    ("HEAD", "/openapi.json", "ServerReflection.ServerReflectionInfo"),
    ("POST", "/sandbox/create", "SandboxService.CreateSandbox"),
    ("GET", "/sandboxes", "SandboxService.ListSandboxes"),
    ("POST", "/sandbox/tool/execute", "ExecutionService.Run"),
    ("GET", "/sandbox/{id}", "SandboxService.GetSandbox"),
    ("POST", "/sandbox/{id}/stop", "SandboxService.StopSandbox"),
    ("DELETE", "/sandbox/{id}", "SandboxService.DeleteSandbox"),
    ("GET", "/sandbox/{id}/tools", "ToolService.ListTools"),
    ("POST", "/sandbox/{id}/archive", "FileService.WriteArchive"),
    ("POST", "/pool/initialize", "PoolService.InitializePool"),
    ("POST", "/pool/execute", "PoolService.RunInPool"),
)
_PATTERNS: Final = tuple(
    (method, re.compile(path.replace(".", r"\.").replace("{id}", "[^/]+")), scoped) for method, path, scoped in _ROUTES
)


def method_of(verb: str, path: str) -> str | Refusal:
    """Finds the method of the contract that a request calls; `Refusal` if no route is listed."""
    fitting = [(method, scoped) for method, pattern, scoped in _PATTERNS if pattern.fullmatch(path)]
    return next(
        (scoped for method, scoped in fitting if method == verb),
        Refusal(tuple(sorted({method for method, _ in fitting}))),
    )
