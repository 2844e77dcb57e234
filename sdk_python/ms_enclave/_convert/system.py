"""Tools and the daemon itself."""

from __future__ import annotations

from datetime import UTC, datetime

from ms_enclave._convert.texts import from_json, moment, word
from ms_enclave._model import HealthCheckResult, ToolInfo
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb


def tool_info(message: tool_pb.Tool) -> ToolInfo:
    """Turns a tool into its description."""
    return ToolInfo(message.name, tuple(message.aliases), message.description, from_json(message.schema_json))


def health(message: system_pb.GetInfoResponse) -> HealthCheckResult:
    """Turns a daemon's description into the documented health."""
    started = moment(message.start_time)
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
            "channel": message.engine.channel,
            "active_executions": message.active_executions,
            "guest_protocol_version": message.guest_protocol_version,
            "protections": {each.name: _protection(each) for each in message.protections},
            "runtime_classes": list(message.runtime_classes),
            "identity": {
                "name": message.identity.name,
                "role": message.identity.role,
                "tenant": message.identity.tenant,
                "kind": word(system_pb.Identity.Kind.Name, message.identity.kind, "KIND_"),
            },
        },
    )


def _protection(message: system_pb.Protection) -> dict[str, str]:
    state = word(system_pb.Protection.State.Name, message.state, "STATE_")
    return {"state": state, "detail": message.detail}
