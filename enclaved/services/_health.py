"""The standard health service: SERVING for each of our services that can do its work now.

No service can once the daemon begins to stop; those that make containers or images cannot while the engine is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from enclaved.services._interceptors import Context

_NEED_ENGINE: Final = frozenset(
    {"", "ms_enclave.v1.SandboxService", "ms_enclave.v1.PoolService", "ms_enclave.v1.ImageService"}
)
"""The others also serve what goes on in sandboxes that run, for which the engine is not asked."""


class Health:
    """Serves ``grpc.health.v1.Health``. The service "" stands for the daemon as a whole."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._serving = True
        self._engine_available = True
        self._changed = asyncio.Condition()

    async def set_serving(self, serving: bool) -> None:
        """Changes the answer for every service and tells those who watch."""
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    async def set_engine_available(self, available: bool) -> None:
        """Changes the answer for the services that need the engine and tells those who watch."""
        async with self._changed:
            self._engine_available = available
            self._changed.notify_all()

    async def check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Answers at once; NOT_FOUND for a service that this daemon does not have."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "this daemon has no such service; reflection lists those it has"
            )
        return HealthCheckResponse(status=self._status(request.service))

    async def watch(self, request: HealthCheckRequest, context: Context) -> None:
        """Answers now and after every change, until the caller leaves."""
        while True:
            told = self._status(request.service)
            await context.write(HealthCheckResponse(status=told))
            async with self._changed:
                while self._status(request.service) == told:
                    await self._changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        works = self._serving and (self._engine_available or service not in _NEED_ENGINE)
        return HealthCheckResponse.SERVING if works else HealthCheckResponse.NOT_SERVING
