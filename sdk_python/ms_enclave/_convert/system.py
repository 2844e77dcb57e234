"""Tools and the daemon itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from ms_enclave._model import HealthCheckResult, ToolInfo
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb


def tool_info(message: tool_pb.Tool) -> ToolInfo:
    """Turns a tool into its description."""
    return ToolInfo(message.name, tuple(message.aliases), message.description, json.loads(message.schema_json))


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
            "channel": message.engine.channel,
            "active_executions": message.active_executions,
            "guest_protocol_version": message.guest_protocol_version,
        },
    )
