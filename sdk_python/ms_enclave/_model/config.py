"""The documented configurations. What a caller sets is a request; what it leaves alone is the daemon's to decide.

`SandboxInfo.config` shows what a sandbox really has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

MEMORY_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
CPU_LIMIT_MAX: Final = 4096.0
RESOURCE_LIMITS: Final = ("idle_timeout", "pids_limit", "tmp_size", "ttl", "working_dir_size")
"""Known keys of ``resource_limits``: seconds without use after which it is removed (0: never); processes and threads at
once; size of /tmp; time to live in seconds; size of the working directory. Sizes are bytes or texts such as "64m"."""

_MEMORY = re.compile(r"(\d+)([kmg]?)", re.ASCII | re.IGNORECASE)
_BYTES_MAX = 2**63 - 1
_SECONDS_MAX = 1e9
"""More than 30 years. Python's own numbers go far beyond what timers and messages can hold."""


def memory_bytes(text: str) -> int:
    """Reads a size such as "512m": digits and one of k, m, g (or none), in units of 1024.

    Raises ``ValueError`` for anything else, for nothing at all ("0"), and for more than 63 bits.
    """
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise ValueError("Invalid memory limit format; write digits and an optional unit k, m or g, such as '512m'")
    size = int(found[1][:30]) * MEMORY_UNITS[found[2].lower()]
    if not 0 < size <= _BYTES_MAX:
        raise ValueError("Invalid memory limit format; it must be more than nothing and less than 8 EiB")
    return size


def is_unicode(text: str) -> bool:
    """Says whether a text can be sent. Python's strings may hold halves of characters, which no encoding knows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seconds(value: float) -> float:
    if not 0 <= value <= _SECONDS_MAX:
        raise ValueError("must be a number of seconds, 0 or more; 0 means the longest that the policy allows")
    return value


def _tools(value: Any) -> Any:
    """Turns a list of names into the form with options, and models of options into dictionaries."""
    if isinstance(value, list | tuple | set | frozenset):
        return {name: {} for name in value}
    if isinstance(value, Mapping):
        return {name: _options(options) for name, options in value.items()}
    return value


def _options(options: Any) -> Any:
    return options.model_dump(exclude_unset=True) if isinstance(options, ToolConfig) else options


class _Config(BaseModel):
    """A configuration that takes no unknown field: a misspelt limit must not be a missing limit."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        waiting = [value]
        while waiting:
            match waiting.pop():
                case str() as text if not is_unicode(text):
                    raise ValueError("contains text that is not valid Unicode (a lone surrogate)")
                case dict() as entries:
                    waiting += [*entries.keys(), *entries.values()]
                case list() | tuple() as items:
                    waiting += items
        return value


class ToolConfig(_Config):
    """Options that every tool has. Only fields that are set are sent; the daemon refuses those it cannot honour."""

    enabled: bool = Field(default=True, description="Whether the tool may be used")
    timeout: int | float = Field(default=30, description="Seconds that a call may run if it names no timeout itself")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Further parameters")
    restrictions: dict[str, Any] = Field(default_factory=dict, description="Further restrictions")


class PythonExecutorConfig(ToolConfig):
    """Options of ``python_executor``."""

    python_path: str = Field(default="python3", description="Interpreter")
    allowed_modules: list[str] | None = Field(
        default=None, description="Modules that programs may import; None: all. A guard rail, no wall"
    )
    blocked_modules: list[str] = Field(
        default_factory=list, description="Modules that programs may not import. A guard rail, no wall"
    )
    max_output_size: int = Field(default=1024 * 1024, description="Bytes of output; more ends the execution")


class ShellExecutorConfig(ToolConfig):
    """Options of ``shell_executor``."""

    shell_path: str = Field(default="/bin/bash", description="Shell")
    allowed_commands: list[str] | None = Field(
        default=None, description="Commands that may be run; None: all. A guard rail, no wall"
    )
    blocked_commands: list[str] = Field(
        default_factory=list, description="Commands that may not be run. A guard rail, no wall"
    )
    max_output_size: int = Field(default=1024 * 1024, description="Bytes of output; more ends the execution")


class FileOperationConfig(ToolConfig):
    """Options of ``file_operation``."""

    allowed_paths: list[str] | None = Field(default=None, description="Paths that the tool may touch; None: all")
    blocked_paths: list[str] = Field(default_factory=list, description="Paths that the tool may not touch")
    max_file_size: int = Field(default=10 * 1024 * 1024, description="Bytes in a file at most")
    allowed_extensions: list[str] | None = Field(default=None, description="Extensions that are allowed; None: all")


class SandboxConfig(_Config):
    """What every kind of sandbox has."""

    timeout: int | float = Field(
        default=30,
        description="Seconds that an execution may run if nothing else says; 0: the longest that the policy allows",
    )
    tools_config: Annotated[dict[str, dict[str, Any]], BeforeValidator(_tools)] = Field(
        default_factory=dict,
        description="Tools to enable: a list of names, or name -> options. {} enables none; not set: all",
    )
    working_dir: str = Field(default="/sandbox", description="Working directory; exists and is writable")
    env_vars: dict[str, str] = Field(default_factory=dict, description="Environment of every program")
    resource_limits: dict[str, int | float | str] = Field(
        default_factory=dict, description=f"Further limits: {', '.join(RESOURCE_LIMITS)}"
    )

    @field_validator("timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return _seconds(value)

    @field_validator("resource_limits")
    @classmethod
    def _check_resource_limits(cls, value: dict[str, int | float | str]) -> dict[str, int | float | str]:
        for name in sorted(value.keys() - set(RESOURCE_LIMITS)):
            raise ValueError(f"unknown limit {name!r}; known are {', '.join(RESOURCE_LIMITS)}")
        resource_limits(value)
        return value

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration from a dictionary, where a value equal to its documented default was not asked for.

        Programs commonly pass a whole dumped model; its defaults must not read as requests. Raises ``ValueError``
        (pydantic's) for unknown fields and malformed values.
        """
        full = cls.model_validate(dict(values))
        asked = {name for name in full.model_fields_set if getattr(full, name) != default_of(cls, name)}
        return cls.model_validate({name: values[name] for name in asked})


class DockerSandboxConfig(SandboxConfig):
    """A sandbox in a container."""

    image: str = Field(default="python:3.11-slim", min_length=1, description="Image: a name, an alias or a digest")
    command: str | list[str] | None = Field(default=None, description="Program to start with the sandbox")
    volumes: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Host directories: path -> {'bind': path in the sandbox, 'mode': 'rw' or 'ro'}",
    )
    ports: dict[str, int | str | tuple[str, int] | None] = Field(
        default_factory=dict, description="Ports to publish: '8080/tcp' -> port, or (address, port), or None for any"
    )
    network: str | None = Field(default="bridge", description="The engine's network")
    extra_hosts: dict[str, str] = Field(
        default_factory=dict, description="Further lines of /etc/hosts: name -> address"
    )
    platform: str | None = Field(default=None, description="Platform of the image, such as 'linux/amd64'")
    memory_limit: str = Field(default="4g", description="Memory: digits and an optional unit k, m or g")
    cpu_limit: float = Field(default=2.0, description="CPU time per wall time, in cores")
    network_enabled: bool = Field(default=True, description="Whether programs may use a network")
    privileged: bool = Field(default=False, description="Refused under every policy")
    remove_on_exit: bool = Field(default=True, description="Whether stop() removes the container and its files")
    auto_resume: bool = Field(default=False, description="Whether it is resumed by itself when used while paused")
    runtime_class: str | None = Field(
        default=None, description="What isolates it, such as runsc, where the operator configured that; None: runc"
    )
    pull_progress: bool = Field(default=False, description="Accepted; the daemon logs its pulls")
    pull_progress_interval: float = Field(default=3.0, description="Accepted; see pull_progress")
    docker_executor_workers: int = Field(default=8, description="Accepted and ignored")

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
        if value > CPU_LIMIT_MAX:
            raise ValueError(f"CPU limit must be at most {CPU_LIMIT_MAX:g} cores")
        return value

    @field_validator("volumes")
    @classmethod
    def _check_volumes(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for host_path, mount in value.items():
            if "bind" not in mount or mount.keys() - {"bind", "mode"}:
                raise ValueError(f"volume {host_path!r} must be {{'bind': path in the sandbox, 'mode': 'rw' or 'ro'}}")
        return value

    @field_validator("ports")
    @classmethod
    def _check_ports(cls, value: dict[str, Any]) -> dict[str, Any]:
        for port, target in value.items():
            host_port(port, target)
        return value


class DockerNotebookConfig(DockerSandboxConfig):
    """A sandbox with a persistent notebook kernel. No port is opened, whatever ``host`` and ``port`` say."""

    image: str = Field(default="jupyter-kernel-gateway", min_length=1, description="Image of the notebook kernel")
    host: str = Field(default="127.0.0.1", description="Accepted and ignored")
    port: int = Field(default=8888, description="Accepted and ignored")
    token: str | None = Field(default=None, description="Accepted and ignored")


class SandboxManagerConfig(_Config):
    """What a manager needs to know."""

    base_url: str | None = Field(default=None, description="Address of an HTTP server; None: a local manager")
    timeout: int | float | None = Field(
        default=None, gt=0, le=_SECONDS_MAX, description="Seconds that a request may take; None: our choice"
    )
    api_key: str | None = Field(default=None, repr=False, description="Key for an HTTP server")
    cleanup_interval: int | None = Field(
        default=None, gt=0, description="Accepted; the daemon itself removes sandboxes whose time is over"
    )
    pool_size: int = Field(default=0, ge=0, description="Sandboxes in the pool; 0: no pool")
    sandbox_config: SandboxConfig | dict[str, Any] | None = Field(
        default=None, description="Configuration of the sandboxes in the pool"
    )


def default_of(model: type[BaseModel], name: str) -> Any:
    """Returns the documented default of a field."""
    return model.model_fields[name].get_default(call_default_factory=True)


def host_port(container_port: str, target: int | str | tuple[str, int] | None) -> tuple[str, int]:
    """Reads the value of one published port as an address ("" for the default) and a port (0 for any).

    Raises ``ValueError`` if it is none of the documented forms.
    """
    address = ""
    port: int | str = 0
    match target:
        case int():
            port = target
        case str():
            address, _, port = target.rpartition(":")
        case (host, number):
            address, port = host, number
    try:
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise ValueError(f"port {container_port!r} must go to a port (0 to 65535), 'address:port' or (address, port)")
    return address, number


def resource_limits(values: Mapping[str, int | float | str]) -> dict[str, int | float]:
    """Reads ``resource_limits``: sizes in bytes, the time to live in seconds.

    Raises ``ValueError`` for a value that is malformed or not positive.
    """
    found: dict[str, int | float] = {}
    for name, value in values.items():
        number: int | float
        if name in ("ttl", "idle_timeout"):
            number = _number(name, value)
        elif name == "pids_limit" or not isinstance(value, str):
            number = int(_number(name, value))
        else:
            number = memory_bytes(value)
        if number > _BYTES_MAX or (number <= 0 and (name, number) != ("idle_timeout", 0)):
            raise ValueError(f"{name} must be positive")
        found[name] = number
    return found


def _number(name: str, value: float | str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number")
    return number
