"""Shows sandboxes in the documented form."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Literal

from enclaved.gateway.bodies import RESOURCE_LIMITS, SandboxStatus, SandboxType, memory_text
from enclaved.gateway.results import plain_number
from enclaved.model import Network, PortMapping, Sandbox, SandboxSpec, SandboxState, ToolDescription


def status_of(sandbox: Sandbox, role: Literal["idle", "busy"] | None) -> SandboxStatus:
    """Says where a sandbox is in its life. Members of a pool are idle or busy while they run."""
    if role is not None and sandbox.state is SandboxState.RUNNING:
        return SandboxStatus(role)
    if sandbox.state is SandboxState.PAUSED:
        return SandboxStatus.IDLE
    if sandbox.state is SandboxState.DELETING:
        return SandboxStatus.STOPPING
    return SandboxStatus(sandbox.state.value)


def sandbox_info(
    sandbox: Sandbox, status: SandboxStatus, container_id: str | None, tools: Iterable[ToolDescription]
) -> dict[str, Any]:
    """Shows a sandbox: what it really has, and what can be run in it."""
    tools = tuple(tools)
    metadata: dict[str, Any] = {
        "container_id": container_id,
        "image_id": sandbox.image_id,
        "uid": sandbox.uid,
        "labels": dict(sandbox.labels),
        "expires_at": _local(sandbox.expires_at),
        "active_executions": sandbox.active_executions,
    }
    if sandbox.state_reason:
        metadata["state_reason"] = sandbox.state_reason
    if sandbox.owner:
        metadata["owner"] = sandbox.owner
    if sandbox.waived:
        metadata["waived"] = list(sandbox.waived)
    if sandbox.command_execution_id:
        metadata["command_execution_id"] = sandbox.command_execution_id
    if sandbox.published_ports:
        metadata["ports"] = _ports(sandbox.published_ports)
    if sandbox.adjustments:
        metadata["adjustments"] = [
            {"field": item.field, "wanted": item.wanted, "granted": item.granted, "rule": item.rule}
            for item in sandbox.adjustments
        ]
    return {
        "id": sandbox.id,
        "status": status.value,
        "type": SandboxType.DOCKER.value,
        "config": _config(sandbox.spec, [tool.name for tool in tools]),
        "created_at": _local(sandbox.created_at),
        "updated_at": _local(sandbox.updated_at),
        "metadata": metadata,
        "available_tools": tool_schemas(tools),
    }


def tool_schemas(tools: Iterable[ToolDescription]) -> dict[str, Any]:
    """Shows tools: name to schema."""
    return {tool.name: dict(tool.schema) for tool in tools}


def stats(statuses: Collection[SandboxStatus], pool_size: int) -> dict[str, Any]:
    """Shows how many sandboxes there are."""
    counts: dict[str, int] = {}
    for status in statuses:
        counts[status.value] = counts.get(status.value, 0) + 1
    return {
        "manager_type": "local",
        "total_sandboxes": len(statuses),
        "status_counts": counts,
        "sandbox_types": {SandboxType.DOCKER.value: len(statuses)} if statuses else {},
        "running": True,
        "cleanup_interval": 300,
        "pool_size": pool_size,
        "pool_enabled": False,
        "pool_initialized": pool_size > 0,
    }


def _config(spec: SandboxSpec, tools: list[str]) -> dict[str, Any]:
    limits = {name: plain_number(getattr(spec, field)) for name, field in RESOURCE_LIMITS.items()}
    if not spec.idle_timeout_s:
        del limits["idle_timeout"]
    shown = {
        "timeout": plain_number(spec.timeout_s),
        "tools_config": {name: dict((spec.tools or {}).get(name, {})) for name in tools},
        "working_dir": spec.working_dir,
        "env_vars": dict(spec.env_vars),
        "resource_limits": limits,
        "image": spec.image,
        "volumes": {
            mount.host_path: {"bind": mount.target, "mode": "ro" if mount.read_only else "rw"} for mount in spec.mounts
        },
        "ports": _ports(spec.ports),
        "network": spec.network.value,
        "extra_hosts": dict(spec.extra_hosts),
        "memory_limit": memory_text(spec.memory_limit_bytes),
        "cpu_limit": spec.cpu_limit,
        "network_enabled": spec.network is not Network.NONE,
        "privileged": False,
        "remove_on_exit": spec.remove_on_exit,
        "pull_progress": False,
        "pull_progress_interval": 3.0,
        "docker_executor_workers": 8,
    }
    asked = {"command": list(spec.command), "platform": spec.platform, "runtime_class": spec.runtime_class}
    return {**shown, **{name: value for name, value in asked.items() if value}}


def _ports(ports: Iterable[PortMapping]) -> dict[str, Any]:
    return {port.container_port: [port.host_address, port.host_port] for port in ports}


def _local(moment: datetime) -> str:
    """Writes a time as the documented API has always done: local, without its zone."""
    return moment.astimezone().replace(tzinfo=None).isoformat()
