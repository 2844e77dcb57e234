"""SystemService: says what this daemon is."""

from __future__ import annotations

from ms_enclave.v1.system_service_pb2 import GetInfoRequest, GetInfoResponse

from enclaved.core import identity
from enclaved.core.system import System
from enclaved.services import _convert as convert
from enclaved.services._interceptors import Context


class SystemService:
    """Serves ``ms_enclave.v1.SystemService``."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def get_info(self, request: GetInfoRequest, context: Context) -> GetInfoResponse:
        """Describes the daemon, its engine and its limits."""
        return convert.system_info(await self._system.info(), identity.current())
