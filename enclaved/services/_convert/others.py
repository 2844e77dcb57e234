"""Everything that is only shown: pulls of images, tools and the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ms_enclave.v1 import image_service_pb2, system_service_pb2, tool_service_pb2

from enclaved import model
from enclaved.services._convert.common import json_text, timestamp


def pull_progress(found: model.PullProgress) -> image_service_pb2.PullImageResponse:
    """Shows how far a pull is."""
    return image_service_pb2.PullImageResponse(
        layer=found.layer,
        status=found.status,
        current_bytes=found.current_bytes,
        total_bytes=found.total_bytes,
        image_id=found.image_id,
    )


def tool(found: model.ToolDescription) -> tool_service_pb2.Tool:
    """Shows a tool."""
    return tool_service_pb2.Tool(
        name=found.name, aliases=found.aliases, description=found.description, schema_json=json_text(found.schema)
    )


def system_info(found: model.SystemInfo, who: model.Identity) -> system_service_pb2.GetInfoResponse:
    """Shows the daemon."""
    return system_service_pb2.GetInfoResponse(
        version=found.version,
        start_time=timestamp(found.started_at),
        embedded=found.embedded,
        engine=system_service_pb2.EngineInfo(
            name=found.engine.name,
            version=found.engine.version,
            available=found.engine.available,
            cgroup_version=found.engine.cgroup_version,
            channel=found.engine.channel,
        ),
        active_sandboxes=found.active_sandboxes,
        active_executions=found.active_executions,
        guest_protocol_version=found.guest_protocol_version,
        protections=[
            system_service_pb2.Protection(name=each.name, state=_PROTECTION_STATES[each.state], detail=each.detail)
            for each in found.protections
        ],
        runtime_classes=found.runtime_classes,
        identity=identity(who),
    )


def identity(who: model.Identity) -> system_service_pb2.Identity:
    """Shows somebody who calls."""
    return system_service_pb2.Identity(name=who.name, role=who.role, tenant=who.tenant, kind=_KINDS[who.kind])


_PROTECTION_STATES: Mapping[model.ProtectionState, system_service_pb2.Protection.State.ValueType] = MappingProxyType(
    {
        model.ProtectionState.EFFECTIVE: system_service_pb2.Protection.STATE_EFFECTIVE,
        model.ProtectionState.WAIVED: system_service_pb2.Protection.STATE_WAIVED,
        model.ProtectionState.ABSENT: system_service_pb2.Protection.STATE_ABSENT,
        model.ProtectionState.FAILED: system_service_pb2.Protection.STATE_FAILED,
        model.ProtectionState.UNKNOWN: system_service_pb2.Protection.STATE_UNKNOWN,
    }
)
_KINDS: Mapping[model.IdentityKind, system_service_pb2.Identity.Kind.ValueType] = MappingProxyType(
    {
        model.IdentityKind.LOCAL: system_service_pb2.Identity.KIND_LOCAL,
        model.IdentityKind.EMBEDDED: system_service_pb2.Identity.KIND_EMBEDDED,
        model.IdentityKind.TOKEN: system_service_pb2.Identity.KIND_TOKEN,
        model.IdentityKind.API_KEY: system_service_pb2.Identity.KIND_API_KEY,
    }
)
