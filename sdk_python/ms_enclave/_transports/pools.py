"""Pools over gRPC, beyond making one and running in it."""

from __future__ import annotations

import secrets

from ms_enclave import _convert as convert
from ms_enclave._convert import pools as convert_pools
from ms_enclave._model import SandboxInfo
from ms_enclave._model.pools import Lease, PoolChange, PoolClaim, PoolStats
from ms_enclave._transports.calls import REQUEST_S, Calls
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import pool_service_pb2 as pb

CLAIM_WAIT_S = 60.0
PAGE_SIZE_MAX = 1000


class Pools:
    """See `ms_enclave._transports.pool_calls.PoolCalls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, pool_id: str) -> PoolStats:
        request = pb.GetPoolRequest(pool_id=convert.text(pool_id, "pool_id"))
        answer = await self._calls.unary(lambda stubs: stubs.pools.GetPool, request, timeout_s=REQUEST_S)
        return convert_pools.pool_stats(answer.pool)

    async def leases(self, pool_id: str, most: int) -> list[Lease]:
        request = pb.ListLeasesRequest(pool_id=convert.text(pool_id, "pool_id"), page_size=min(most, PAGE_SIZE_MAX))
        answer = await self._calls.unary(lambda stubs: stubs.pools.ListLeases, request, timeout_s=REQUEST_S)
        return [convert_pools.lease(found) for found in answer.leases]

    async def list(self) -> list[PoolStats]:
        request = pb.ListPoolsRequest()
        answer = await self._calls.unary(lambda stubs: stubs.pools.ListPools, request, timeout_s=REQUEST_S)
        return [convert_pools.pool_stats(found) for found in answer.pools]

    async def update(self, pool_id: str, change: PoolChange) -> PoolStats:
        try:
            request = pb.UpdatePoolRequest(
                pool_id=convert.text(pool_id, "pool_id"),
                size=change.size,
                member_age_max_s=change.member_age_max_s,
                refill_per_s=change.refill_per_s,
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"pool: {error}") from None
        answer = await self._calls.unary(lambda stubs: stubs.pools.UpdatePool, request, timeout_s=REQUEST_S)
        return convert_pools.pool_stats(answer.pool)

    async def claim(self, pool_id: str, claim: PoolClaim, wait_timeout_s: float | None = None) -> SandboxInfo:
        wait_s = CLAIM_WAIT_S if wait_timeout_s is None else wait_timeout_s
        request_id = claim.request_id or secrets.token_hex(16)  # so that it can be repeated
        try:
            request = convert_pools.claim_request(convert.text(pool_id, "pool_id"), claim, request_id, wait_s)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"claim: {error}") from None
        timeout_s = wait_s + REQUEST_S
        answer = await self._calls.unary(lambda stubs: stubs.pools.Claim, request, timeout_s=timeout_s)
        return convert.sandbox_info(answer.sandbox)
