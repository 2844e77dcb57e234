"""Reads a request for a sandbox from JSON, as ``enclaved policy explain`` takes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from enclaved.config.errors import ConfigError
from enclaved.model import PortMapping, SandboxRequest, Volume


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Volume(_Strict):
    host_path: str
    bind: str
    mode: str = "rw"


class _Port(_Strict):
    container_port: str
    host_address: str = "127.0.0.1"
    host_port: int = 0


class _Request(_Strict):
    image: str | None = None
    memory_limit_bytes: int | None = None
    cpu_limit: float | None = None
    pids_limit: int | None = None
    working_dir_size_bytes: int | None = None
    tmp_size_bytes: int | None = None
    working_dir: str | None = None
    env_vars: dict[str, str] = {}
    tools: dict[str, dict[str, Any]] | list[str] | None = None
    timeout_s: float | None = None
    ttl_s: float | None = None
    remove_on_exit: bool | None = None
    network_enabled: bool | None = None
    network: str | None = None
    volumes: list[_Volume] = []
    ports: list[_Port] = []
    extra_hosts: dict[str, str] = {}
    platform: str | None = None
    command: list[str] = []
    privileged: bool | None = None
    auto_resume: bool | None = None
    idle_timeout_s: float | None = None
    runtime_class: str | None = None


def _problem(detail: ErrorDetails) -> str:
    place = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"the request has {place!r}, which is no field of a sandbox's specification"
    return f"the request's {place}: {detail['msg']}" if place else f"the request is no JSON object: {detail['msg']}"


def read_request(text: str | bytes) -> SandboxRequest:
    """Reads a request whose fields are those of a sandbox's specification over gRPC. Raises `ConfigError`."""
    try:
        found = _Request.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError([_problem(each) for each in error.errors()]) from None
    plain = {name: value for name, value in found if name not in ("tools", "volumes", "ports", "command")}
    tools = {name: {} for name in found.tools} if isinstance(found.tools, list) else found.tools
    return SandboxRequest(
        **plain,
        tools=tools,
        volumes=tuple(Volume(each.host_path, each.bind, each.mode) for each in found.volumes),
        ports=tuple(PortMapping(each.container_port, each.host_address, each.host_port) for each in found.ports),
        command=tuple(found.command),
    )
