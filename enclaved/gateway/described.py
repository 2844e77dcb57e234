"""What the OpenAPI description says beside what FastAPI finds out by itself: bodies, answers, examples, keys."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from enclaved.gateway.bodies import DockerSandboxConfig, ToolExecutionRequest

Responses: TypeAlias = dict[int | str, dict[str, Any]]

ABOUT: Final = (
    "Runs code that nobody has read yet in isolated sandboxes. Where keys are configured, every request needs one: "
    "X-API-Key: KEY, or Authorization: Bearer KEY."
)
SECURITY: Final[dict[str, Any]] = {
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}

_CONFIG = {
    "image": "python:3.11-slim",
    "tools_config": {"python_executor": {}, "shell_executor": {}, "file_operation": {}},
    "memory_limit": "512m",
    "timeout": 30,
    "network_enabled": False,
}
_RESULT = {
    "status": "success",
    "execution_time": 0.004,
    "timestamp": "2026-11-23T05:07:35.233711",
    "tool_name": "python_executor",
    "output": "42\n",
    "metadata": {"verdict": "EXITED", "exit_code": 0, "signal": None, "stderr": "", "truncated": False},
    "error": None,
}
_STATS = {
    "manager_type": "local",
    "total_sandboxes": 2,
    "status_counts": {"running": 1, "idle": 1},
    "sandbox_types": {"docker": 2},
    "running": True,
    "cleanup_interval": 300,
    "pool_size": 1,
    "pool_enabled": False,
    "pool_initialized": True,
}
_INFO = {
    "id": "3f0c9a7be412",
    "status": "running",
    "type": "docker",
    "config": {"image": "python:3.11-slim", "memory_limit": "512m", "cpu_limit": 1.0, "network_enabled": False},
    "created_at": "2026-11-23T05:07:34.438039",
    "updated_at": "2026-11-23T05:07:34.752819",
    "metadata": {"container_id": "2d0d1435b30a"},
    "available_tools": {"python_executor": {"type": "function", "function": {"name": "python_executor"}}},
}
_REFUSALS = {
    400: ("Something in the request is wrong; detail says what", "memory_limit: Invalid memory limit format"),
    403: ("The policy of the operator does not grant it", "this daemon grants no network (policy rule: network)"),
    404: ("There is no such sandbox or tool, or the sandbox does not run", "Sandbox 3f0c9a7be412 not found"),
    408: ("Nothing became free, or came, in time", "no member of the pool was free within 30 s"),
    409: ("The sandbox is in a state in which this makes no sense, or ended meanwhile", "sandbox was lost"),
    413: ("More than may be sent, or than fits into the sandbox", "the body has more than 1048576 bytes"),
    415: ("The body is not JSON", "send the body as JSON, with Content-Type: application/json"),
    429: ("As many as there may be; try again after Retry-After", "the daemon has 200 sandboxes already"),
    503: ("The container engine does not answer, or the daemon stops; try again after Retry-After", "try again"),
}
_ALWAYS = (400, 429, 503)


def answers(example: Any, *codes: int) -> Responses:
    """Describes the answers of a route: its example, and the refusals of these and of all routes."""
    found: Responses = {200: {"description": "Done", "content": {"application/json": {"example": example}}}}
    for code in sorted({*_ALWAYS, *codes}):
        text, detail = _REFUSALS[code]
        found[code] = {"description": text, "content": {"application/json": {"example": {"detail": detail}}}}
    found[401] = {
        "description": "The key is missing or not valid",
        "content": {"application/json": {"example": {"detail": "Invalid or missing API key"}}},
    }
    return found


HEALTH: Final = answers(
    {"healthy": True, "version": "0.1.0", "uptime": 12.5, "active_sandboxes": 2, "system_info": _STATS}
)
STATS: Final = answers(_STATS)
CREATE: Final = answers({"sandbox_id": "3f0c9a7be412"}, 403, 409, 413, 415)
LIST: Final = answers([_INFO])
INFO: Final = answers(_INFO, 404)
STOP: Final = answers({"message": "Sandbox stopped successfully"}, 404, 409)
DELETE: Final = answers({"message": "Sandbox deleted successfully"}, 404, 409)
EXECUTE: Final = answers(_RESULT, 403, 404, 409, 413, 415)
TOOLS: Final = answers(_INFO["available_tools"], 404)
ARCHIVE: Final = answers({"ok": True}, 404, 408, 409, 413)
POOL_INITIALIZE: Final = answers(
    {"message": "Pool initialized successfully", "pool_size": 1, "sandbox_ids": ["3f0c9a7be412"]}, 403, 409, 413, 415
)
POOL_EXECUTE: Final = answers(_RESULT, 403, 404, 408, 409, 413, 415)

CONFIG_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "The configuration is the whole body; without one every field has its default.",
        "required": False,
        "content": {"application/json": {"schema": DockerSandboxConfig.model_json_schema(), "example": _CONFIG}},
    }
}
PARAMETERS_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "The parameters of the tool are the whole body.",
        "required": False,
        "content": {"application/json": {"schema": {"type": "object"}, "example": {"code": "print(40 + 2)"}}},
    }
}
ARCHIVE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "A tar archive, plain or packed by gzip, bzip2 or xz. Links may not lead out.",
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _json(model: type[BaseModel], example: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


EXECUTE_BODY: Final = _json(
    ToolExecutionRequest,
    {"sandbox_id": "3f0c9a7be412", "tool_name": "python_executor", "parameters": {"code": "print(40 + 2)"}},
)
