"""PoolService: runs calls that need no sandbox of their own, and hands out sandboxes that are ready."""

from __future__ import annotations

from ms_enclave.v1.pool_service_pb2 import (
    ClaimRequest,
    ClaimResponse,
    DeletePoolRequest,
    DeletePoolResponse,
    GetPoolRequest,
    GetPoolResponse,
    InitializePoolRequest,
    InitializePoolResponse,
    ListLeasesRequest,
    ListLeasesResponse,
    ListPoolsRequest,
    ListPoolsResponse,
    RunInPoolRequest,
    RunInPoolResponse,
    UpdatePoolRequest,
    UpdatePoolResponse,
)

from enclaved.core.pool import WAIT_DEFAULT_S, Pools
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context
from enclaved.services._pages import fitting


class PoolService:
    """Serves ``ms_enclave.v1.PoolService``."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def initialize_pool(self, request: InitializePoolRequest, context: Context) -> InitializePoolResponse:
        """Makes the members of a pool."""
        pool_id = fields.sandbox_id(request.pool_id, "pool_id", required=False)
        return convert.new_pool(await self._pools.initialize(convert.pool_plan(request), pool_id=pool_id))

    async def get_pool(self, request: GetPoolRequest, context: Context) -> GetPoolResponse:
        """Shows a pool."""
        return GetPoolResponse(pool=convert.pool(self._pools.get(fields.sandbox_id(request.pool_id, "pool_id"))))

    async def list_pools(self, request: ListPoolsRequest, context: Context) -> ListPoolsResponse:
        """Shows all pools."""
        return ListPoolsResponse(pools=[convert.pool(found) for found in self._pools.list()])

    async def update_pool(self, request: UpdatePoolRequest, context: Context) -> UpdatePoolResponse:
        """Changes a pool while it serves."""
        pool_id = fields.sandbox_id(request.pool_id, "pool_id")
        return UpdatePoolResponse(pool=convert.pool(await self._pools.update(pool_id, convert.pool_change(request))))

    async def run_in_pool(self, request: RunInPoolRequest, context: Context) -> RunInPoolResponse:
        """Runs a tool in the next free member and answers with the whole result."""
        call = convert.tool_call(request.spec, "spec", streamed=False, in_pool=True)
        wait_s = _wait_s(request)
        sandbox_id, result = await self._pools.run(fields.sandbox_id(request.pool_id, "pool_id"), call, wait_s)
        return RunInPoolResponse(run=convert.run_response(result), sandbox_id=sandbox_id)

    async def claim(self, request: ClaimRequest, context: Context) -> ClaimResponse:
        """Makes the next free member a sandbox of the caller's own."""
        pool_id = fields.sandbox_id(request.pool_id, "pool_id")
        return convert.claimed(await self._pools.claim(pool_id, convert.claim_wish(request), _wait_s(request)))

    async def list_leases(self, request: ListLeasesRequest, context: Context) -> ListLeasesResponse:
        """Shows the last uses of a pool's members."""
        pool_id = fields.sandbox_id(request.pool_id, "pool_id")
        page, shown = fitting(
            request.page_size,
            lambda size: self._pools.leases(pool_id, page_size=size, page_token=request.page_token),
            lambda page: (convert.lease(found) for found in page.leases),
        )
        return ListLeasesResponse(leases=shown, next_page_token=page.next_page_token)

    async def delete_pool(self, request: DeletePoolRequest, context: Context) -> DeletePoolResponse:
        """Deletes a pool with its members."""
        await self._pools.delete(fields.sandbox_id(request.pool_id, "pool_id"))
        return DeletePoolResponse()


def _wait_s(request: RunInPoolRequest | ClaimRequest) -> float:
    if not request.HasField("wait_timeout_s"):
        return WAIT_DEFAULT_S
    return fields.amount(request.wait_timeout_s, "wait_timeout_s")
