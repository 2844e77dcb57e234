"""The one mapping between the SDK's models and the contract's messages.

A round-trip test fills every message and fails when a field is not mapped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from ms_enclave._model import (
    Channel,
    DockerSandboxConfig,
    Event,
    ExceptionInfo,
    Finished,
    HealthCheckResult,
    Notice,
    NoticeKind,
    Output,
    Phases,
    ResourceUsage,
    SandboxInfo,
    SandboxStatus,
    SandboxType,
    Started,
    ToolInfo,
    Verdict,
)
from ms_enclave._model.config import MEMORY_UNITS, host_port, is_unicode, memory_bytes, resource_limits
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

PARAMETERS_LIMIT_BYTES = 1024 * 1024

_STATUS = {
    sandbox_pb.Sandbox.STATE_INITIALIZING: SandboxStatus.INITIALIZING,
    sandbox_pb.Sandbox.STATE_RUNNING: SandboxStatus.RUNNING,
    sandbox_pb.Sandbox.STATE_STOPPING: SandboxStatus.STOPPING,
    sandbox_pb.Sandbox.STATE_STOPPED: SandboxStatus.STOPPED,
    sandbox_pb.Sandbox.STATE_ERROR: SandboxStatus.ERROR,
}
CHANNELS = {
    execution_pb.CHANNEL_STDOUT: Channel.STDOUT,
    execution_pb.CHANNEL_STDERR: Channel.STDERR,
    execution_pb.CHANNEL_TERMINAL: Channel.TERMINAL,
}
_NOTICES = {
    execution_pb.Notice.KIND_AWAITING_INPUT: NoticeKind.AWAITING_INPUT,
    execution_pb.Notice.KIND_GAP: NoticeKind.GAP,
    execution_pb.Notice.KIND_CONTEXT_RESET: NoticeKind.CONTEXT_RESET,
}


# -- sandboxes ---------------------------------------------------------------------------------------------------


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


_LimitField = Literal["pids_limit", "working_dir_size_bytes", "tmp_size_bytes", "ttl_s"]
_LIMIT_FIELDS: dict[str, _LimitField] = {
    "pids_limit": "pids_limit",
    "working_dir_size": "working_dir_size_bytes",
    "tmp_size": "tmp_size_bytes",
    "ttl": "ttl_s",
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
    "resource_limits": _limits,
}
"""How each documented field travels. The others (pull_progress, ...) are accepted and do not."""


def sandbox_info(message: sandbox_pb.Sandbox) -> SandboxInfo:
    """Turns the daemon's view of a sandbox into the documented one."""
    metadata: dict[str, Any] = {"image_id": message.image_id, "uid": message.uid, "labels": dict(message.labels)}
    if message.state_reason:
        metadata["state_reason"] = message.state_reason
    if message.HasField("expire_time"):
        metadata["expires_at"] = _local_time(message.expire_time).isoformat()
    if message.adjustments:
        metadata["adjustments"] = [
            {"field": a.field, "wanted": a.wanted, "granted": a.granted, "rule": a.rule} for a in message.adjustments
        ]
    metadata["active_executions"] = message.active_executions
    return SandboxInfo(
        id=message.id,
        status=_STATUS.get(message.state, SandboxStatus.ERROR),
        type=SandboxType.DOCKER,
        config=effective_config(message.spec),
        created_at=_local_time(message.create_time),
        updated_at=_local_time(message.update_time),
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
        found["tools_config"] = {tool.name: json.loads(tool.options_json or "{}") for tool in message.tools.tools}
    found["env_vars"] = dict(message.env_vars)
    found["network_enabled"] = message.network_enabled
    found["network"] = message.network if message.HasField("network") else ("none", "bridge")[message.network_enabled]
    found["volumes"] = {v.host_path: {"bind": v.bind, "mode": v.mode or "rw"} for v in message.volumes}
    found["ports"] = {p.container_port: (p.host_address or "127.0.0.1", p.host_port) for p in message.ports}
    found["extra_hosts"] = dict(message.extra_hosts)
    found["privileged"] = message.privileged
    found["resource_limits"] = {
        name: plain_number(getattr(message, field)) for name, field in _LIMIT_FIELDS.items() if message.HasField(field)
    }
    if message.platform:
        found["platform"] = message.platform
    if message.command:
        found["command"] = list(message.command)
    return found


def memory_text(size: int) -> str:
    """Writes a size as briefly as it can be written exactly: 536870912 is "512m"."""
    factor, unit = max((factor, unit) for unit, factor in MEMORY_UNITS.items() if factor == 1 or size % factor == 0)
    return f"{size // factor}{unit}"


def plain_number(value: float) -> int | float:
    """Returns a whole number as an int, so that it prints as people write it."""
    return int(value) if value == int(value) else value


def _local_time(stamp: Timestamp) -> datetime:
    """Turns a timestamp into the naive local time that the documented models have always had."""
    return stamp.ToDatetime(UTC).astimezone().replace(tzinfo=None)


# -- tools, executions and the daemon itself ---------------------------------------------------------------------


def tool_info(message: tool_pb.Tool) -> ToolInfo:
    """Turns a tool into its description."""
    return ToolInfo(message.name, tuple(message.aliases), message.description, json.loads(message.schema_json))


def text(value: str, field: str) -> str:
    """Returns a text that can be sent. Raises `InvalidRequest` naming ``field`` for any other."""
    if not is_unicode(value):
        raise InvalidRequest(f"{field}: contains text that is not valid Unicode (a lone surrogate)")
    return value


def to_json(value: Mapping[str, Any], field: str) -> str:
    """Writes parameters or options as JSON text.

    Raises `InvalidRequest` for what JSON cannot say (objects, NaN, text that is no valid Unicode), naming the entry at
    fault (``parameters.timeout``), and for more than 1 MiB.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size_bytes = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        why = f"cannot be written as JSON: {error}"
        if isinstance(error, UnicodeEncodeError):
            why = "contains text that is not valid Unicode (a lone surrogate)"
        raise InvalidRequest(f"{_at_fault(value, field)}: {why}") from None
    if size_bytes > PARAMETERS_LIMIT_BYTES:
        raise InvalidRequest(
            f"{field}: {size_bytes} bytes are more than the limit of {PARAMETERS_LIMIT_BYTES}; "
            "put the content into a file with put_file() and have the program read it"
        )
    return text


def _at_fault(value: Mapping[str, Any], field: str) -> str:
    """Names the first entry that cannot be written as JSON text."""
    for name, item in value.items():
        try:
            json.dumps({name: item}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            return f"{field}.{name}" if isinstance(name, str) and is_unicode(name) else field
    return field


def event(message: execution_pb.ExecutionEvent) -> Event | None:
    """Turns an event into its model; ``None`` for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "started":
            return Started(message.started.execution_id, message.started.timeout_s)
        case "output":
            piece = message.output
            return Output(CHANNELS[piece.channel], piece.offset, piece.data, piece.time_s)
        case "notice":
            return notice(message.notice)
        case "finished":
            return finished(message.finished)
        case _:
            return None


def notice(message: execution_pb.Notice) -> Notice:
    """Turns a notice into its model."""
    kind = _NOTICES.get(message.kind, NoticeKind.OTHER)
    return Notice(kind, message.message, CHANNELS.get(message.channel), message.offset, message.length_bytes)


def finished(message: execution_pb.Finished) -> Finished:
    """Turns the end of an execution into its model."""
    usage, phases = message.usage, message.phases
    return Finished(
        verdict=_verdict(message.verdict),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        message=message.message,
        attested=message.attested,
        exception=ExceptionInfo(message.exception.type, message.exception.message)
        if message.HasField("exception")
        else None,
        bytes_total={CHANNELS[item.channel]: item.offset for item in message.bytes_total if item.channel in CHANNELS},
        usage=ResourceUsage(
            usage.cpu_user_s,
            usage.cpu_system_s,
            usage.memory_peak_bytes,
            usage.io_read_bytes,
            usage.io_write_bytes,
        ),
        phases=Phases(phases.queued_s, phases.starting_s, phases.running_s, phases.draining_s),
        state_preserved=message.state_preserved if message.HasField("state_preserved") else None,
        limits_hit={hit.limit: hit.count for hit in message.limits_hit},
        timeout_s=message.timeout_s,
    )


def _verdict(number: execution_pb.Verdict.ValueType) -> Verdict:
    if number not in execution_pb.Verdict.values() or not number:
        return Verdict.INTERNAL_ERROR
    return Verdict(execution_pb.Verdict.Name(number).removeprefix("VERDICT_"))


def health(message: system_pb.GetInfoResponse) -> HealthCheckResult:
    """Turns a daemon's description into the documented health."""
    started = message.start_time.ToDatetime(UTC)
    return HealthCheckResult(
        healthy=message.engine.available,
        version=message.version,
        uptime=max(0.0, (datetime.now(UTC) - started).total_seconds()),
        active_sandboxes=message.active_sandboxes,
        system_info={
            "embedded": message.embedded,
            "engine": message.engine.name,
            "engine_version": message.engine.version,
            "cgroup_version": message.engine.cgroup_version,
            "active_executions": message.active_executions,
            "guest_protocol_version": message.guest_protocol_version,
        },
    )
