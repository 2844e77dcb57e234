"""The only mapping between the messages of the contract and the daemon's own model.

From the wire: what is malformed raises `InvalidRequest` with the field's path; what this version does not serve raises
`NotServed`. What is well-formed but too much is for policy to judge. Onto the wire: never fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from ms_enclave.v1 import (
    execution_service_pb2,
    image_service_pb2,
    pool_service_pb2,
    sandbox_service_pb2,
    system_service_pb2,
    tool_service_pb2,
)

from enclaved import model
from enclaved.errors import InvalidRequest, NotServed
from enclaved.services import _fields as fields

_CHANNELS = frozenset(model.CHANNEL_NAMES)


# -- sandboxes ---------------------------------------------------------------------------------------------------


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


def states(values: Iterable[sandbox_service_pb2.Sandbox.State.ValueType]) -> frozenset[model.SandboxState]:
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
        create_time=_timestamp(found.created_at),
        update_time=_timestamp(found.updated_at),
        expire_time=_timestamp(found.expires_at),
        image_id=found.image_id,
        active_executions=found.active_executions,
        uid=found.uid,
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
        network_enabled=False,
    )
    if spec.tools is not None:
        found.tools.SetInParent()
        for name, options in spec.tools.items():
            found.tools.tools.add(name=name, options_json=_json(options))
    return found


_STATES: Mapping[model.SandboxState, sandbox_service_pb2.Sandbox.State.ValueType] = MappingProxyType(
    {
        model.SandboxState.INITIALIZING: sandbox_service_pb2.Sandbox.STATE_INITIALIZING,
        model.SandboxState.RUNNING: sandbox_service_pb2.Sandbox.STATE_RUNNING,
        model.SandboxState.STOPPING: sandbox_service_pb2.Sandbox.STATE_STOPPING,
        model.SandboxState.STOPPED: sandbox_service_pb2.Sandbox.STATE_STOPPED,
        model.SandboxState.ERROR: sandbox_service_pb2.Sandbox.STATE_ERROR,
    }
)


# -- executions --------------------------------------------------------------------------------------------------


def tool_call(
    spec: execution_service_pb2.ExecutionSpec, field: str, *, takes_input: bool, in_pool: bool = False
) -> model.ToolCall:
    """Reads what to run. ``field`` is where the spec stands in the request: ``spec`` or ``start``.

    ``in_pool``: the pool chooses the sandbox, so the spec names none.
    """
    _refuse_what_is_not_served(spec, field)
    if spec.stdin and not takes_input:
        raise InvalidRequest.of(f"{field}.stdin", "needs a stream to send input on; use Execute")
    if not spec.tool:
        raise InvalidRequest.of(f"{field}.tool", "is missing")
    if spec.HasField("output_limit_bytes") and spec.output_limit_bytes < 1:
        raise InvalidRequest.of(f"{field}.output_limit_bytes", f"must be at least 1, is {spec.output_limit_bytes}")
    call = model.ToolCall(
        sandbox_id=fields.sandbox_id(spec.sandbox_id, f"{field}.sandbox_id", required=not in_pool),
        tool=spec.tool,
        parameters=fields.json_object(spec.parameters_json, f"{field}.parameters_json"),
        execution_id=fields.execution_id(spec.execution_id, f"{field}.execution_id", required=False),
        timeout_s=fields.amount(spec.timeout_s, f"{field}.timeout_s") if spec.HasField("timeout_s") else None,
        output_limit_bytes=spec.output_limit_bytes if spec.HasField("output_limit_bytes") else None,
        stdin=spec.stdin,
        merge_stderr=spec.merge_stderr,
    )
    if not spec.HasField("detach_grace_s"):
        return call
    return replace(call, detach_grace_s=fields.amount(spec.detach_grace_s, f"{field}.detach_grace_s"))


def _refuse_what_is_not_served(spec: execution_service_pb2.ExecutionSpec, field: str) -> None:
    wanted = {
        "idle_timeout_s": spec.HasField("idle_timeout_s"),
        "terminal": spec.HasField("terminal"),
        "stats_interval_s": spec.HasField("stats_interval_s"),
        "retention KEEP_LAST": spec.retention == execution_service_pb2.RETENTION_KEEP_LAST,
        "detach": spec.detach,
        "context": bool(spec.context),
    }
    for name, is_set in wanted.items():
        if is_set:
            raise NotServed(f"{field}.{name}")
    if spec.retention not in execution_service_pb2.Retention.values():
        raise InvalidRequest.of(f"{field}.retention", f"has the unknown value {spec.retention}")


def offsets(items: Iterable[execution_service_pb2.ChannelOffset], field: str) -> dict[int, int]:
    """Reads positions in channels."""
    found: dict[int, int] = {}
    for index, item in enumerate(items):
        if item.channel not in _CHANNELS:
            raise InvalidRequest.of(
                f"{field}[{index}].channel", f"must be stdout, stderr or terminal, is {item.channel}"
            )
        if item.channel in found:
            raise InvalidRequest.of(f"{field}[{index}].channel", "is named a second time")
        found[item.channel] = fields.not_negative(item.offset, f"{field}[{index}].offset")
    return found


def event(found: model.Event) -> execution_service_pb2.ExecutionEvent:
    """Shows something that happened in an execution."""
    match found:
        case model.Output():
            return execution_service_pb2.ExecutionEvent(
                output=execution_service_pb2.Output(
                    channel=_channel(found.channel), offset=found.offset, data=found.data, time_s=found.time_s
                )
            )
        case model.Started():
            return execution_service_pb2.ExecutionEvent(
                started=execution_service_pb2.Started(
                    execution_id=found.execution_id,
                    timeout_s=found.timeout_s,
                    offsets=_offsets(found.offsets),
                    create_time=_timestamp(found.created_at),
                )
            )
        case model.Notice():
            return execution_service_pb2.ExecutionEvent(notice=_notice(found))
        case model.Finished():
            return execution_service_pb2.ExecutionEvent(finished=_finished(found))


def run_response(found: model.RunResult) -> execution_service_pb2.RunResponse:
    """Shows the whole of a short execution, or the beginning of a longer one."""
    return execution_service_pb2.RunResponse(
        execution_id=found.execution_id,
        stdout=found.stdout,
        stderr=found.stderr,
        finished=None if found.finished is None else _finished(found.finished),
        running=found.finished is None,
        notices=[_notice(notice) for notice in found.notices],
    )


def _notice(found: model.Notice) -> execution_service_pb2.Notice:
    return execution_service_pb2.Notice(
        kind=_NOTICES[found.kind],
        message=found.message,
        channel=execution_service_pb2.CHANNEL_UNSPECIFIED if found.channel is None else _channel(found.channel),
        offset=found.offset,
        length_bytes=found.length_bytes,
    )


def _finished(found: model.Finished) -> execution_service_pb2.Finished:
    return execution_service_pb2.Finished(
        verdict=execution_service_pb2.Verdict.Value(f"VERDICT_{found.verdict.name}"),
        exit_code=found.exit_code,
        signal=found.signal,
        message=found.message,
        attested=found.attested,
        exception=None
        if found.exception is None
        else execution_service_pb2.ExceptionInfo(type=found.exception.type, message=found.exception.message),
        bytes_total=_offsets(found.bytes_total),
        usage=execution_service_pb2.ResourceUsage(
            cpu_user_s=found.usage.cpu_user_s,
            cpu_system_s=found.usage.cpu_system_s,
            memory_peak_bytes=found.usage.memory_peak_bytes,
            io_read_bytes=found.usage.io_read_bytes,
            io_write_bytes=found.usage.io_write_bytes,
        ),
        phases=execution_service_pb2.Phases(
            queued_s=found.phases.queued_s,
            starting_s=found.phases.starting_s,
            running_s=found.phases.running_s,
            draining_s=found.phases.draining_s,
        ),
        state_preserved=found.state_preserved,
        limits_hit=[execution_service_pb2.LimitHit(limit=hit.limit, count=hit.count) for hit in found.limits_hit],
        timeout_s=found.timeout_s,
    )


def _offsets(items: Mapping[int, int]) -> list[execution_service_pb2.ChannelOffset]:
    return [
        execution_service_pb2.ChannelOffset(channel=_channel(channel), offset=offset)
        for channel, offset in sorted(items.items())
    ]


def _channel(number: int) -> execution_service_pb2.Channel.ValueType:
    return execution_service_pb2.Channel.ValueType(number)


_NOTICES: Mapping[model.NoticeKind, execution_service_pb2.Notice.Kind.ValueType] = MappingProxyType(
    {
        model.NoticeKind.AWAITING_INPUT: execution_service_pb2.Notice.KIND_AWAITING_INPUT,
        model.NoticeKind.GAP: execution_service_pb2.Notice.KIND_GAP,
        model.NoticeKind.CONTEXT_RESET: execution_service_pb2.Notice.KIND_CONTEXT_RESET,
    }
)


# -- pools and images --------------------------------------------------------------------------------------------


def pool(found: model.PoolInfo) -> pool_service_pb2.InitializePoolResponse:
    """Shows a pool."""
    return pool_service_pb2.InitializePoolResponse(pool_id=found.id, sandbox_ids=found.sandbox_ids)


def pull_progress(found: model.PullProgress) -> image_service_pb2.PullImageResponse:
    """Shows how far a pull is."""
    return image_service_pb2.PullImageResponse(
        layer=found.layer,
        status=found.status,
        current_bytes=found.current_bytes,
        total_bytes=found.total_bytes,
        image_id=found.image_id,
    )


# -- tools and the daemon ----------------------------------------------------------------------------------------


def tool(found: model.ToolDescription) -> tool_service_pb2.Tool:
    """Shows a tool."""
    return tool_service_pb2.Tool(
        name=found.name, aliases=found.aliases, description=found.description, schema_json=_json(found.schema)
    )


def system_info(found: model.SystemInfo) -> system_service_pb2.GetInfoResponse:
    """Shows the daemon."""
    return system_service_pb2.GetInfoResponse(
        version=found.version,
        start_time=_timestamp(found.started_at),
        embedded=found.embedded,
        engine=system_service_pb2.EngineInfo(
            name=found.engine.name,
            version=found.engine.version,
            available=found.engine.available,
            cgroup_version=found.engine.cgroup_version,
        ),
        active_sandboxes=found.active_sandboxes,
        active_executions=found.active_executions,
        guest_protocol_version=found.guest_protocol_version,
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False)


def _timestamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found
