"""The documented bodies of requests, and what of them is a wish.

Programs commonly post a whole dumped configuration. A value equal to its documented default is therefore no wish: the
daemon decides, as if the field had been left out. Unknown fields are refused: a misspelt limit is no missing limit.
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from enclaved.core.policy import COMMAND_BYTES_MAX
from enclaved.errors import NotServed
from enclaved.model import PortMapping, SandboxRequest, Volume

MEMORY_UNITS: Final[Mapping[str, int]] = MappingProxyType({"": 1, "k": 1024, "m": 1024**2, "g": 1024**3})
RESOURCE_LIMITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pids_limit": "pids_limit",
        "working_dir_size": "working_dir_size_bytes",
        "tmp_size": "tmp_size_bytes",
        "ttl": "ttl_s",
        "idle_timeout": "idle_timeout_s",
    }
)
"""Known keys of ``resource_limits`` and the fields that they set."""

_MEMORY = re.compile(r"(\d{1,30})([kmg]?)", re.ASCII | re.IGNORECASE)
_BYTES_MAX = 2**63 - 1
_SECONDS_MAX = 1e9

_TOOL_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "enabled": True,
        "timeout": 30,
        "parameters": {},
        "restrictions": {},
        "python_path": "python3",
        "allowed_modules": None,
        "blocked_modules": [],
        "shell_path": "/bin/bash",
        "allowed_commands": None,
        "blocked_commands": [],
        "allowed_paths": None,
        "blocked_paths": [],
        "allowed_extensions": None,
        "max_output_size": 1024 * 1024,
        "max_file_size": 10 * 1024 * 1024,
    }
)
"""Documented options of tools with their defaults, which dumped configurations carry."""


class SandboxType(enum.StrEnum):
    """What kind of environment a sandbox is."""

    DOCKER = "docker"
    DOCKER_NOTEBOOK = "docker_notebook"
    VOLCENGINE = "volcengine"
    DUMMY = "dummy"


class SandboxStatus(enum.StrEnum):
    """Where a sandbox is in its life, in the documented words."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


def _tools(value: Any) -> Any:
    return {name: {} for name in value} if isinstance(value, list) else value


class DockerSandboxConfig(BaseModel):
    """What a caller wants its sandbox to be. Every field may be left out."""

    model_config = ConfigDict(extra="forbid")

    timeout: float = Field(30, description="Seconds that an execution may run; 0: the longest that policy allows")
    tools_config: Annotated[dict[str, dict[str, Any]] | None, BeforeValidator(_tools)] = Field(
        default_factory=dict,
        description="Tools to enable: a list of names, or name -> options. Nothing: no tool. null: every tool",
    )
    working_dir: str = Field("/sandbox", description="Working directory; exists and is writable")
    env_vars: dict[str, str] = Field(default_factory=dict, description="Environment of every program")
    resource_limits: dict[str, int | float | str] = Field(
        default_factory=dict, description=f"Further limits: {', '.join(RESOURCE_LIMITS)}"
    )
    image: str = Field("python:3.11-slim", min_length=1, description="Image: a name, an alias or a digest")
    command: str | list[str] | None = Field(None, description="Program to start with the sandbox")
    volumes: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Host directories: path -> {bind, mode}"
    )
    ports: dict[str, int | str | tuple[str, int] | None] = Field(
        default_factory=dict, description="Ports to publish: '8080/tcp' -> port, [address, port], or null for any"
    )
    network: str | None = Field("bridge", description="The engine's network")
    extra_hosts: dict[str, str] = Field(
        default_factory=dict, description="Further lines of /etc/hosts: name -> address"
    )
    platform: str | None = Field(None, description="Platform of the image, such as linux/amd64")
    runtime_class: str | None = Field(
        None, description="What isolates it, such as runsc, where the operator configured that; null: runc"
    )
    memory_limit: str = Field("4g", description="Memory: digits and an optional unit k, m or g")
    cpu_limit: float = Field(2.0, description="CPU time per wall time, in cores")
    network_enabled: bool = Field(True, description="Whether programs may use a network")
    privileged: bool = Field(False, description="Refused under every policy")
    remove_on_exit: bool = Field(True, description="Whether stop removes the container and its files")
    pull_progress: bool = Field(False, description="Accepted; the daemon logs its pulls")
    pull_progress_interval: float = Field(3.0, description="Accepted; see pull_progress")
    docker_executor_workers: int = Field(8, description="Accepted and ignored")

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        if not 0 <= value <= _SECONDS_MAX:
            raise ValueError("must be a number of seconds, 0 or more; 0 means the longest that the policy allows")
        return value

    @field_validator("memory_limit")
    @classmethod
    def _check_memory_limit(cls, value: str) -> str:
        memory_bytes(value)
        return value

    @field_validator("cpu_limit")
    @classmethod
    def _check_cpu_limit(cls, value: float) -> float:
        if not value > 0:
            raise ValueError("CPU limit must be positive")
        return value

    @field_validator("volumes")
    @classmethod
    def _check_volumes(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for mount in value.values():
            if "bind" not in mount or mount.keys() - {"bind", "mode"}:
                raise ValueError("a volume must be {'bind': path in the sandbox, 'mode': 'rw' or 'ro'}")
        return value

    @field_validator("ports")
    @classmethod
    def _check_ports(cls, value: dict[str, Any]) -> dict[str, Any]:
        for target in value.values():
            _host_port(target)
        return value

    @field_validator("resource_limits")
    @classmethod
    def _check_resource_limits(cls, value: dict[str, int | float | str]) -> dict[str, int | float | str]:
        for name in sorted(value.keys() - set(RESOURCE_LIMITS)):
            raise ValueError(f"unknown limit {name[:64]!r}; known are {', '.join(RESOURCE_LIMITS)}")
        _limits(value)
        return value


class ToolExecutionRequest(BaseModel):
    """Asks for one run of a tool."""

    model_config = ConfigDict(extra="forbid")

    sandbox_id: str = Field(description="The sandbox to run it in")
    tool_name: str = Field(description="The tool, or an alias of it")
    parameters: dict[str, Any] = Field(default_factory=dict, description="What the tool wants to know")


def sandbox_request(kind: SandboxType, config: DockerSandboxConfig) -> SandboxRequest:
    """Turns a configuration into a request: only what differs from its documented default is asked for.

    A network at its documented default is passed on as such, so that the sandbox says that there is none. Raises
    `NotServed`.
    """
    if kind is not SandboxType.DOCKER:
        raise NotServed(f"sandbox_type {kind.value}")
    asked = {name: getattr(config, name) for name in config.model_fields_set if not _is_default(config, name)}
    memory = asked.get("memory_limit")
    limits = _limits(config.resource_limits)
    defaults = frozenset(
        name for name in ("network_enabled", "network") if name in config.model_fields_set - set(asked)
    )
    return SandboxRequest(
        image=asked.get("image"),
        memory_limit_bytes=None if memory is None else memory_bytes(memory),
        cpu_limit=asked.get("cpu_limit"),
        pids_limit=_whole(limits.get("pids_limit")),
        working_dir_size_bytes=_whole(limits.get("working_dir_size_bytes")),
        tmp_size_bytes=_whole(limits.get("tmp_size_bytes")),
        working_dir=asked.get("working_dir"),
        env_vars=dict(config.env_vars),
        tools=None if config.tools_config is None else dict(_enabled(config.tools_config)),
        timeout_s=asked.get("timeout"),
        ttl_s=limits.get("ttl_s"),
        idle_timeout_s=limits.get("idle_timeout_s"),
        remove_on_exit=asked.get("remove_on_exit"),
        network_enabled=True if "network_enabled" in defaults else asked.get("network_enabled"),
        network=config.network if "network" in defaults else asked.get("network"),
        volumes=tuple(Volume(path, mount["bind"], mount.get("mode") or "rw") for path, mount in config.volumes.items()),
        ports=tuple(
            PortMapping(port, address or "127.0.0.1", number)
            for port, (address, number) in ((port, _host_port(target)) for port, target in config.ports.items())
        ),
        extra_hosts=dict(config.extra_hosts),
        platform=asked.get("platform") or None,
        command=_command(config.command),
        runtime_class=asked.get("runtime_class") or None,
        privileged=asked.get("privileged"),
        documented_defaults=defaults,
    )


def memory_bytes(text: str) -> int:
    """Reads a size such as "512m", in units of 1024. Raises ``ValueError``."""
    found = _MEMORY.fullmatch(text)
    size = int(found[1]) * MEMORY_UNITS[found[2].lower()] if found else 0
    if not 0 < size <= _BYTES_MAX:
        raise ValueError("Invalid memory limit format")
    return size


def memory_text(size: int) -> str:
    """Writes a size as briefly as it can be written exactly: 536870912 is "512m"."""
    factor, unit = max((factor, unit) for unit, factor in MEMORY_UNITS.items() if factor == 1 or size % factor == 0)
    return f"{size // factor}{unit}"


def _is_default(config: DockerSandboxConfig, name: str) -> bool:
    field = DockerSandboxConfig.model_fields[name]
    return bool(getattr(config, name) == field.get_default(call_default_factory=True, validated_data={}))


def _enabled(tools: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Finds the tools that are enabled, with the options that are more than a documented default."""
    return [
        (
            name,
            {key: value for key, value in options.items() if key not in _TOOL_OPTIONS or value != _TOOL_OPTIONS[key]},
        )
        for name, options in tools.items()
        if options.get("enabled") is not False
    ]


def _command(value: str | list[str] | None) -> tuple[str, ...]:
    if not isinstance(value, str):
        return tuple(value or ())
    if len(value) > COMMAND_BYTES_MAX:  # refused as one word by whoever decides on it: to split it takes long
        return (value,)
    try:
        return tuple(shlex.split(value))
    except ValueError:
        return (value,)


def _host_port(target: int | str | tuple[str, int] | None) -> tuple[str, int]:
    """Reads where a port is to be published: an address ("" for the default) and a port (0 for any)."""
    address = ""
    port: int | str = 0
    match target:
        case int():
            port = target
        case str():
            address, _, port = target.rpartition(":")
        case (host, number):
            address, port = host, number
    number = int(port) if isinstance(port, int) or (port.isascii() and port.isdigit() and len(port) < 6) else -1
    if not 0 <= number <= 65535:
        raise ValueError("a port must go to a port (0 to 65535), 'address:port' or [address, port]")
    return address, number


def _limits(values: Mapping[str, int | float | str]) -> dict[str, float]:
    """Reads ``resource_limits``: sizes in bytes, the time to live in seconds. Raises ``ValueError``."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, str) and name.endswith("_size"):
            value = memory_bytes(value)
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = -1.0
        if not (number > 0 or (number == 0 and name == "idle_timeout")) or not number <= _BYTES_MAX:
            raise ValueError(f"{name} must be a positive number")
        found[RESOURCE_LIMITS[name]] = number
    return found


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
