"""Sandboxes: what a caller asks for, and what the daemon says of one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from ms_enclave._convert.texts import from_json, local_time, plain_number, to_json
from ms_enclave._model import DockerSandboxConfig, SandboxInfo, SandboxStatus, SandboxType
from ms_enclave._model.config import MEMORY_UNITS, host_port, memory_bytes, resource_limits
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

STATUS: Final = {
    sandbox_pb.Sandbox.STATE_INITIALIZING: SandboxStatus.INITIALIZING,
    sandbox_pb.Sandbox.STATE_RUNNING: SandboxStatus.RUNNING,
    sandbox_pb.Sandbox.STATE_PAUSED: SandboxStatus.IDLE,
    sandbox_pb.Sandbox.STATE_STOPPING: SandboxStatus.STOPPING,
    sandbox_pb.Sandbox.STATE_STOPPED: SandboxStatus.STOPPED,
    sandbox_pb.Sandbox.STATE_ERROR: SandboxStatus.ERROR,
    sandbox_pb.Sandbox.STATE_DELETING: SandboxStatus.STOPPING,
}


def spec(config: DockerSandboxConfig, tools: Mapping[str, Mapping[str, Any]] | None) -> sandbox_pb.SandboxSpec:
    """Turns what a caller asked for into a request: only fields that were set are sent.

    ``tools``: the daemon's tools to enable with their options; ``None``: all of them.
    Raises `InvalidRequest` for options that are not JSON.
    """
    message = sandbox_pb.SandboxSpec()
    for name in config.model_fields_set:
        if name in _TO_SPEC:
            _TO_SPEC[name](message, getattr(config, name))
    if tools is not None:
        message.tools.SetInParent()
        for name, options in tools.items():
            message.tools.tools.add(name=name, options_json=to_json(options, f"tools_config.{name}") if options else "")
    return message


def _set(field: str) -> Callable[[sandbox_pb.SandboxSpec, Any], None]:
    def put(message: sandbox_pb.SandboxSpec, value: Any) -> None:
        if value is not None:
            setattr(message, field, value)

    return put


def _update(field: str) -> Callable[[sandbox_pb.SandboxSpec, Any], None]:
    def put(message: sandbox_pb.SandboxSpec, value: Any) -> None:
        getattr(message, field).update(value)

    return put


def _memory(message: sandbox_pb.SandboxSpec, value: str) -> None:
    message.memory_limit_bytes = memory_bytes(value)


def _command(message: sandbox_pb.SandboxSpec, value: str | list[str] | None) -> None:
    message.command.extend(shlex.split(value) if isinstance(value, str) else value or ())


def _volumes(message: sandbox_pb.SandboxSpec, value: Mapping[str, Mapping[str, str]]) -> None:
    for host_path, mount in value.items():
        message.volumes.add(host_path=host_path, bind=mount["bind"], mode=mount.get("mode", ""))


def _ports(message: sandbox_pb.SandboxSpec, value: Mapping[str, Any]) -> None:
    for port, target in value.items():
        address, number = host_port(port, target)
        message.ports.add(container_port=port, host_address=address, host_port=number)


_LimitField = Literal["pids_limit", "working_dir_size_bytes", "tmp_size_bytes", "ttl_s", "idle_timeout_s"]
_LIMIT_FIELDS: dict[str, _LimitField] = {
    "pids_limit": "pids_limit",
    "working_dir_size": "working_dir_size_bytes",
    "tmp_size": "tmp_size_bytes",
    "ttl": "ttl_s",
    "idle_timeout": "idle_timeout_s",
}


def _limits(message: sandbox_pb.SandboxSpec, value: Mapping[str, int | float | str]) -> None:
    for name, number in resource_limits(value).items():
        try:
            setattr(message, _LIMIT_FIELDS[name], number)
        except ValueError:
            raise InvalidRequest(f"resource_limits: {name} is out of range") from None


_TO_SPEC: dict[str, Callable[[sandbox_pb.SandboxSpec, Any], None]] = {
    "image": _set("image"),
    "memory_limit": _memory,
    "cpu_limit": _set("cpu_limit"),
    "working_dir": _set("working_dir"),
    "env_vars": _update("env_vars"),
    "timeout": _set("timeout_s"),
    "remove_on_exit": _set("remove_on_exit"),
    "network_enabled": _set("network_enabled"),
    "network": _set("network"),
    "volumes": _volumes,
    "ports": _ports,
    "extra_hosts": _update("extra_hosts"),
    "platform": _set("platform"),
    "command": _command,
    "privileged": _set("privileged"),
    "auto_resume": _set("auto_resume"),
    "runtime_class": _set("runtime_class"),
    "resource_limits": _limits,
}
"""How each documented field travels. The others (pull_progress, ...) are accepted and do not."""


def sandbox_info(message: sandbox_pb.Sandbox) -> SandboxInfo:
    """Turns the daemon's view of a sandbox into the documented one."""
    metadata: dict[str, Any] = {"image_id": message.image_id, "uid": message.uid, "labels": dict(message.labels)}
    if message.state == sandbox_pb.Sandbox.STATE_PAUSED:
        metadata["paused"] = True
    if message.state_reason:
        metadata["state_reason"] = message.state_reason
    if message.HasField("expire_time"):
        metadata["expires_at"] = local_time(message.expire_time).isoformat()
    if message.adjustments:
        metadata["adjustments"] = [
            {"field": a.field, "wanted": a.wanted, "granted": a.granted, "rule": a.rule} for a in message.adjustments
        ]
    metadata["active_executions"] = message.active_executions
    metadata["tenant"], metadata["revision"] = message.tenant, message.revision
    if message.owner:
        metadata["owner"] = message.owner
    if message.waived:
        metadata["waived"] = list(message.waived)
    if message.command_execution_id:
        metadata["command_execution_id"] = message.command_execution_id
    if message.published_ports:
        metadata["ports"] = {p.container_port: (p.host_address, p.host_port) for p in message.published_ports}
    if message.HasField("last_use_time"):
        metadata["last_used_at"] = local_time(message.last_use_time).isoformat()
    return SandboxInfo(
        id=message.id,
        status=STATUS.get(message.state, SandboxStatus.ERROR),
        type=SandboxType.DOCKER,
        config=effective_config(message.spec),
        created_at=local_time(message.create_time),
        updated_at=local_time(message.update_time),
        metadata=metadata,
    )


def effective_config(message: sandbox_pb.SandboxSpec) -> dict[str, Any]:
    """Returns what a sandbox really has, under the documented names; what the daemon does not say keeps its default."""
    found = DockerSandboxConfig().model_dump(exclude_none=True)
    if message.image:
        found["image"] = message.image
    if message.HasField("memory_limit_bytes"):
        found["memory_limit"] = memory_text(message.memory_limit_bytes)
    if message.HasField("cpu_limit"):
        found["cpu_limit"] = message.cpu_limit
    if message.working_dir:
        found["working_dir"] = message.working_dir
    if message.HasField("timeout_s"):
        found["timeout"] = plain_number(message.timeout_s)
    if message.HasField("remove_on_exit"):
        found["remove_on_exit"] = message.remove_on_exit
    if message.HasField("tools"):
        found["tools_config"] = {tool.name: from_json(tool.options_json or "{}") for tool in message.tools.tools}
    found["env_vars"] = dict(message.env_vars)
    found["network_enabled"] = message.network_enabled
    found["network"] = message.network if message.HasField("network") else ("none", "bridge")[message.network_enabled]
    found["volumes"] = {v.host_path: {"bind": v.bind, "mode": v.mode or "rw"} for v in message.volumes}
    found["ports"] = {p.container_port: (p.host_address or "127.0.0.1", p.host_port) for p in message.ports}
    found["extra_hosts"] = dict(message.extra_hosts)
    found["privileged"] = message.privileged
    found["auto_resume"] = message.auto_resume
    found["resource_limits"] = {
        name: plain_number(getattr(message, field))
        for name, field in _LIMIT_FIELDS.items()
        if message.HasField(field) and (name != "idle_timeout" or message.idle_timeout_s)
    }
    if message.platform:
        found["platform"] = message.platform
    if message.command:
        found["command"] = list(message.command)
    if message.runtime_class:
        found["runtime_class"] = message.runtime_class
    return found


def memory_text(size: int) -> str:
    """Writes a size as briefly as it can be written exactly: 536870912 is "512m"."""
    factor, unit = max((factor, unit) for unit, factor in MEMORY_UNITS.items() if factor == 1 or size % factor == 0)
    return f"{size // factor}{unit}"
