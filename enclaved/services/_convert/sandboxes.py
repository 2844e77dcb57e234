"""Sandboxes: what a caller wants one to be, and how one is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from ms_enclave.v1 import sandbox_service_pb2

from enclaved import model
from enclaved.errors import InvalidRequest
from enclaved.services import _fields as fields
from enclaved.services._convert.common import json_text, timestamp


def sandbox_request(spec: sandbox_service_pb2.SandboxSpec) -> model.SandboxRequest:
    """Reads what a caller wants its sandbox to be; a field that is not set becomes ``None``."""
    return model.SandboxRequest(
        image=spec.image or None,
        memory_limit_bytes=spec.memory_limit_bytes if spec.HasField("memory_limit_bytes") else None,
        cpu_limit=spec.cpu_limit if spec.HasField("cpu_limit") else None,
        pids_limit=spec.pids_limit if spec.HasField("pids_limit") else None,
        working_dir_size_bytes=spec.working_dir_size_bytes if spec.HasField("working_dir_size_bytes") else None,
        tmp_size_bytes=spec.tmp_size_bytes if spec.HasField("tmp_size_bytes") else None,
        working_dir=spec.working_dir or None,
        env_vars=dict(spec.env_vars),
        tools=_tool_selection(spec.tools) if spec.HasField("tools") else None,
        timeout_s=spec.timeout_s if spec.HasField("timeout_s") else None,
        ttl_s=spec.ttl_s if spec.HasField("ttl_s") else None,
        remove_on_exit=spec.remove_on_exit if spec.HasField("remove_on_exit") else None,
        network_enabled=spec.network_enabled if spec.HasField("network_enabled") else None,
        network=spec.network if spec.HasField("network") else None,
        volumes=tuple(model.Volume(volume.host_path, volume.bind, volume.mode or "rw") for volume in spec.volumes),
        ports=tuple(
            model.PortMapping(port.container_port, port.host_address or "127.0.0.1", port.host_port)
            for port in spec.ports
        ),
        extra_hosts=dict(spec.extra_hosts),
        platform=spec.platform or None,
        command=tuple(spec.command),
        privileged=spec.privileged if spec.HasField("privileged") else None,
        auto_resume=spec.auto_resume if spec.HasField("auto_resume") else None,
        idle_timeout_s=spec.idle_timeout_s if spec.HasField("idle_timeout_s") else None,
        runtime_class=spec.runtime_class or None,
    )


def sandbox_update(request: sandbox_service_pb2.UpdateSandboxRequest) -> model.SandboxUpdate:
    """Reads what a caller wants changed; a field that is not set becomes ``None``."""
    return model.SandboxUpdate(
        ttl_s=request.ttl_s if request.HasField("ttl_s") else None,
        labels=dict(request.labels.labels) if request.HasField("labels") else None,
        memory_limit_bytes=request.memory_limit_bytes if request.HasField("memory_limit_bytes") else None,
        cpu_limit=request.cpu_limit if request.HasField("cpu_limit") else None,
        pids_limit=request.pids_limit if request.HasField("pids_limit") else None,
        idle_timeout_s=request.idle_timeout_s if request.HasField("idle_timeout_s") else None,
    )


def _tool_selection(selection: sandbox_service_pb2.ToolSelection) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(selection.tools):
        field = f"spec.tools.tools[{index}]"
        if not tool.name:
            raise InvalidRequest.of(f"{field}.name", "is missing")
        if tool.name in found:
            raise InvalidRequest.of(f"{field}.name", f"names {tool.name!r} a second time")
        found[tool.name] = fields.json_object(tool.options_json or "{}", f"{field}.options_json")
    return found


def _wanted_states(values: Iterable[sandbox_service_pb2.Sandbox.State.ValueType]) -> frozenset[model.SandboxState]:
    """Reads the states that a listing asks for."""
    known = {number: state for state, number in _STATES.items()}
    for value in values:
        if value not in known:
            raise InvalidRequest.of("states", f"has the unknown state {value}")
    return frozenset(known[value] for value in values)


def sandbox(found: model.Sandbox) -> sandbox_service_pb2.Sandbox:
    """Shows a sandbox."""
    return sandbox_service_pb2.Sandbox(
        id=found.id,
        state=_STATES[found.state],
        state_reason=found.state_reason,
        spec=_spec(found.spec),
        adjustments=[
            sandbox_service_pb2.Adjustment(field=item.field, wanted=item.wanted, granted=item.granted, rule=item.rule)
            for item in found.adjustments
        ],
        labels=found.labels,
        create_time=timestamp(found.created_at),
        update_time=timestamp(found.updated_at),
        expire_time=timestamp(found.expires_at),
        image_id=found.image_id,
        active_executions=found.active_executions,
        uid=found.uid,
        tenant=found.tenant,
        revision=found.revision,
        last_use_time=None if found.used_at is None else timestamp(found.used_at),
        owner=found.owner,
        waived=found.waived,
        command_execution_id=found.command_execution_id,
        published_ports=[_port(port) for port in found.published_ports],
    )


def sandbox_filter(
    request: sandbox_service_pb2.ListSandboxesRequest | sandbox_service_pb2.WatchSandboxesRequest,
) -> model.SandboxFilter:
    """Reads which sandboxes somebody wants to see."""
    return model.SandboxFilter(
        labels=dict(request.labels),
        states=_wanted_states(request.states),
        tenant=request.tenant,
        created_before=_moment(request.created_before, "created_before")
        if request.HasField("created_before")
        else None,
        created_after=_moment(request.created_after, "created_after") if request.HasField("created_after") else None,
    )


def _moment(stamp: Timestamp, field: str) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.of(field, "must be a moment between the years 1 and 9999") from None


def state_change(change: model.StateChange) -> sandbox_service_pb2.StateChange:
    """Shows one change of a sandbox's state."""
    return sandbox_service_pb2.StateChange(
        time=timestamp(change.at), state=_STATES[change.state], reason=change.reason, cause=_CAUSES[change.cause]
    )


def sandbox_event(
    event: model.SandboxEvent | model.Bookmark, wanted: model.SandboxFilter
) -> sandbox_service_pb2.WatchSandboxesResponse:
    """Shows one change to somebody who watches these sandboxes."""
    if isinstance(event, model.Bookmark):
        kind = sandbox_service_pb2.WatchSandboxesResponse.KIND_BOOKMARK
        return sandbox_service_pb2.WatchSandboxesResponse(kind=kind, revision=event.revision)
    return sandbox_service_pb2.WatchSandboxesResponse(
        kind=_KINDS[event.kind],
        revision=event.revision,
        sandbox=sandbox(event.sandbox),
        cause=_CAUSES[event.cause],
        time=timestamp(event.at),
        matches=event.kind is not model.SandboxEventKind.DELETED and wanted.shows(event.sandbox),
    )


def _spec(spec: model.SandboxSpec) -> sandbox_service_pb2.SandboxSpec:
    found = sandbox_service_pb2.SandboxSpec(
        image=spec.image,
        memory_limit_bytes=spec.memory_limit_bytes,
        cpu_limit=spec.cpu_limit,
        pids_limit=spec.pids_limit,
        working_dir_size_bytes=spec.working_dir_size_bytes,
        tmp_size_bytes=spec.tmp_size_bytes,
        working_dir=spec.working_dir,
        env_vars=spec.env_vars,
        timeout_s=spec.timeout_s,
        ttl_s=spec.ttl_s,
        remove_on_exit=spec.remove_on_exit,
        network_enabled=spec.network is not model.Network.NONE,
        network=spec.network.value,
        volumes=[
            sandbox_service_pb2.Volume(
                host_path=mount.host_path, bind=mount.target, mode="ro" if mount.read_only else "rw"
            )
            for mount in spec.mounts
        ],
        ports=[_port(port) for port in spec.ports],
        extra_hosts=spec.extra_hosts,
        command=spec.command,
        platform=spec.platform,
        auto_resume=spec.auto_resume,
        idle_timeout_s=spec.idle_timeout_s,
        runtime_class=spec.runtime_class,
    )
    if spec.tools is not None:
        found.tools.SetInParent()
        for name, options in spec.tools.items():
            found.tools.tools.add(name=name, options_json=json_text(options))
    return found


def _port(port: model.PortMapping) -> sandbox_service_pb2.PortMapping:
    return sandbox_service_pb2.PortMapping(
        container_port=port.container_port, host_address=port.host_address, host_port=port.host_port
    )


_STATES: Mapping[model.SandboxState, sandbox_service_pb2.Sandbox.State.ValueType] = MappingProxyType(
    {
        model.SandboxState.INITIALIZING: sandbox_service_pb2.Sandbox.STATE_INITIALIZING,
        model.SandboxState.RUNNING: sandbox_service_pb2.Sandbox.STATE_RUNNING,
        model.SandboxState.PAUSED: sandbox_service_pb2.Sandbox.STATE_PAUSED,
        model.SandboxState.STOPPING: sandbox_service_pb2.Sandbox.STATE_STOPPING,
        model.SandboxState.STOPPED: sandbox_service_pb2.Sandbox.STATE_STOPPED,
        model.SandboxState.ERROR: sandbox_service_pb2.Sandbox.STATE_ERROR,
        model.SandboxState.DELETING: sandbox_service_pb2.Sandbox.STATE_DELETING,
    }
)
_CAUSES: Mapping[model.Cause, sandbox_service_pb2.StateChange.Cause.ValueType] = MappingProxyType(
    {
        model.Cause.REQUEST: sandbox_service_pb2.StateChange.CAUSE_REQUEST,
        model.Cause.DAEMON: sandbox_service_pb2.StateChange.CAUSE_DAEMON,
        model.Cause.ENGINE: sandbox_service_pb2.StateChange.CAUSE_ENGINE,
        model.Cause.TTL: sandbox_service_pb2.StateChange.CAUSE_TTL,
        model.Cause.IDLE: sandbox_service_pb2.StateChange.CAUSE_IDLE,
    }
)
_KINDS: Mapping[model.SandboxEventKind, sandbox_service_pb2.WatchSandboxesResponse.Kind.ValueType] = MappingProxyType(
    {
        model.SandboxEventKind.CREATED: sandbox_service_pb2.WatchSandboxesResponse.KIND_CREATED,
        model.SandboxEventKind.CHANGED: sandbox_service_pb2.WatchSandboxesResponse.KIND_CHANGED,
        model.SandboxEventKind.DELETED: sandbox_service_pb2.WatchSandboxesResponse.KIND_DELETED,
    }
)
