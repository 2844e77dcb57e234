"""PoolService: runs calls that need no sandbox of their own."""

from __future__ import annotations

from ms_enclave.v1.pool_service_pb2 import (
    DeletePoolRequest,
    DeletePoolResponse,
    InitializePoolRequest,
    InitializePoolResponse,
    RunInPoolRequest,
    RunInPoolResponse,
)

from enclaved.core.pool import WAIT_DEFAULT_S, Pools
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context


class PoolService:
    """Serves ``ms_enclave.v1.PoolService``."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def initialize_pool(self, request: InitializePoolRequest, context: Context) -> InitializePoolResponse:
        """Makes the members of a pool."""
        pool = await self._pools.initialize(
            request.size,
            convert.sandbox_request(request.spec),
            pool_id=fields.sandbox_id(request.pool_id, "pool_id", required=False),
            labels=dict(request.labels),
        )
        return convert.pool(pool)

    async def run_in_pool(self, request: RunInPoolRequest, context: Context) -> RunInPoolResponse:
        """Runs a tool in the next free member and answers with the whole result."""
        wait_s = WAIT_DEFAULT_S
        if request.HasField("wait_timeout_s"):
            wait_s = fields.amount(request.wait_timeout_s, "wait_timeout_s")
        call = convert.tool_call(request.spec, "spec", streamed=False, in_pool=True)
        sandbox_id, result = await self._pools.run(fields.sandbox_id(request.pool_id, "pool_id"), call, wait_s)
        return RunInPoolResponse(run=convert.run_response(result), sandbox_id=sandbox_id)

    async def delete_pool(self, request: DeletePoolRequest, context: Context) -> DeletePoolResponse:
        """Deletes a pool with its members."""
        await self._pools.delete(fields.sandbox_id(request.pool_id, "pool_id"))
        return DeletePoolResponse()
