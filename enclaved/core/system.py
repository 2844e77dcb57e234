"""What this daemon is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from enclaved.agent.guest.limits import PROTOCOL_VERSION
from enclaved.core.channels import Channels
from enclaved.core.executions import Executions
from enclaved.core.protections import Protections
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import EngineUnavailable
from enclaved.metrics import Metrics
from enclaved.model import RUNC, EngineInfo, SystemInfo
from enclaved.runtime.base import Runtime


class System:
    """Describes the daemon and its engine."""

    def __init__(
        self,
        *,
        version: str,
        embedded: bool,
        runtime: Runtime,
        sandboxes: Sandboxes,
        executions: Executions,
        channels: Channels,
        metrics: Metrics,
        protections: Protections,
        runtime_classes: tuple[str, ...] = (),
    ) -> None:
        self._runtime_classes = (RUNC, *runtime_classes)
        self._protections = protections
        self._version, self._embedded = version, embedded
        self._runtime, self._sandboxes, self._executions = runtime, sandboxes, executions
        self._channels, self._metrics = channels, metrics
        self._started_at = datetime.now(UTC)
        self._engine = EngineInfo(name="docker")

    async def info(self) -> SystemInfo:
        """Asks the engine and describes the daemon. An engine that does not answer is part of the description."""
        try:
            self._engine = await self._runtime.info()
        except EngineUnavailable:
            known = self._engine
            self._engine = EngineInfo(known.name, known.version, False, known.cgroup_version)
        self._metrics.engine.up(self._engine.available)
        return SystemInfo(
            version=self._version,
            started_at=self._started_at,
            embedded=self._embedded,
            engine=replace(self._engine, channel=self._channels.known or ""),
            active_sandboxes=self._sandboxes.active,
            active_executions=self._executions.active,
            guest_protocol_version=PROTOCOL_VERSION,
            protections=self._protections.states,
            runtime_classes=self._runtime_classes,
        )
