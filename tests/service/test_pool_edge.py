"""Pools and pulls over a real gRPC server: what the core is asked, and what the caller gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved import errors, model
from tests.service.edge import Edge, details, fields, reason, serving


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with serving() as edge:
        yield edge


def in_pool(**changes: Any) -> pool_pb.RunInPoolRequest:
    spec = execution_pb.ExecutionSpec(tool="python_executor", parameters_json='{"code": "1"}')
    return pool_pb.RunInPoolRequest(**{"pool_id": "pool", "spec": spec, **changes})


async def test_a_pool_is_made_with_size_spec_and_labels(edge: Edge) -> None:
    request = pool_pb.InitializePoolRequest(
        pool_id="pool", size=2, spec=sandbox_pb.SandboxSpec(pids_limit=64), labels={"team": "a"}
    )
    response = await edge.pool_stub.InitializePool(request)
    plan = model.PoolPlan(2, model.SandboxRequest(pids_limit=64), {"team": "a"})
    assert edge.pools.asked == [("initialize", plan, "pool")]
    assert (response.pool_id, list(response.sandbox_ids)) == ("pool", ["box", "box-2"])


async def test_a_pool_is_made_with_what_keeps_its_members(edge: Edge) -> None:
    options = pool_pb.PoolOptions(contexts=["default", "b"], preload=["json"], member_age_max_s=60.0, refill_per_s=2.0)
    await edge.pool_stub.InitializePool(pool_pb.InitializePoolRequest(size=1, options=options))
    plan = model.PoolPlan(1, contexts=("default", "b"), preload=("json",), member_age_max_s=60.0, refill_per_s=2.0)
    assert edge.pools.asked == [("initialize", plan, "")]


async def test_a_pool_is_shown_with_its_members_and_what_is_wrong(edge: Edge) -> None:
    pool = (await edge.pool_stub.GetPool(pool_pb.GetPoolRequest(pool_id="pool"))).pool
    assert (pool.pool_id, pool.origin, pool.size, pool.waiting) == ("pool", pool_pb.Pool.ORIGIN_OPERATOR, 2, 4)
    assert (pool.spec.image, pool.spec.pids_limit, pool.spec.HasField("cpu_limit")) == ("x:1", 64, False)
    assert (list(pool.options.contexts), list(pool.options.preload)) == (["default"], ["json"])
    (member,) = pool.members
    assert (member.sandbox_id, member.state, member.calls) == ("box", pool_pb.PoolMember.STATE_IDLE, 3)
    assert (pool.counters.runs, pool.trouble, dict(pool.labels)) == (5, "no image", {"team": "a"})
    listed = await edge.pool_stub.ListPools(pool_pb.ListPoolsRequest())
    assert list(listed.pools) == [pool]


async def test_only_what_is_named_changes_of_a_pool(edge: Edge) -> None:
    await edge.pool_stub.UpdatePool(pool_pb.UpdatePoolRequest(pool_id="pool", size=3))
    await edge.pool_stub.UpdatePool(pool_pb.UpdatePoolRequest(pool_id="pool", member_age_max_s=0.0, refill_per_s=1.0))
    assert edge.pools.asked == [
        ("update", "pool", model.PoolChange(size=3)),
        ("update", "pool", model.PoolChange(member_age_max_s=0.0, refill_per_s=1.0)),
    ]


async def test_a_claim_says_what_is_to_be_other_and_how_long_it_took(edge: Edge) -> None:
    request = pool_pb.ClaimRequest(
        pool_id="pool", wait_timeout_s=1.0, ttl_s=60.0, labels={"a": "b"}, memory_limit_bytes=5, request_id="once"
    )
    answer = await edge.pool_stub.Claim(request)
    change = model.SandboxUpdate(ttl_s=60.0, labels={"a": "b"}, memory_limit_bytes=5)
    assert edge.pools.asked == [("claim", "pool", model.ClaimWish(change, "once"), 1.0)]
    assert answer.sandbox.id == "box"
    assert (answer.phases.waited_s, answer.phases.changed_s) == (0.5, 0.25)


async def test_leases_are_shown_with_their_proof(edge: Edge) -> None:
    answer = await edge.pool_stub.ListLeases(pool_pb.ListLeasesRequest(pool_id="pool", page_size=1))
    assert edge.pools.asked == [("leases", "pool", 1, "")]
    (lease,) = answer.leases
    assert (lease.number, lease.slot, lease.kind, lease.outcome) == (7, 1, pool_pb.Lease.KIND_RUN, 1)
    assert (lease.verdict, lease.proof.processes_killed) == (execution_pb.VERDICT_EXITED, 3)
    assert (lease.proof.files_left, lease.proof.mounts_changed) == (0, False)
    assert answer.next_page_token == "7"


async def test_a_run_says_which_member_ran_it(edge: Edge) -> None:
    response = await edge.pool_stub.RunInPool(in_pool(wait_timeout_s=2.5))
    call = model.ToolCall("", "python_executor", {"code": "1"})
    assert edge.pools.asked == [("run", "pool", call, 2.5)]
    assert response.sandbox_id == "box"
    assert (response.run.stdout, response.run.running) == (b"out", False)
    assert response.run.finished.verdict == execution_pb.VERDICT_EXITED


@pytest.mark.parametrize(("given", "wait_s"), [({}, 60.0), ({"wait_timeout_s": 0.0}, 0.0)])
async def test_one_who_does_not_say_how_long_waits_a_minute(edge: Edge, given: dict[str, float], wait_s: float) -> None:
    await edge.pool_stub.RunInPool(in_pool(**given))
    assert edge.pools.asked[0][3] == wait_s


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (in_pool(pool_id=""), "pool_id"),
        (in_pool(pool_id="No Id"), "pool_id"),
        (in_pool(wait_timeout_s=float("nan")), "wait_timeout_s"),
        (in_pool(wait_timeout_s=-1.0), "wait_timeout_s"),
        (in_pool(spec=execution_pb.ExecutionSpec()), "spec.tool"),
        (in_pool(spec=execution_pb.ExecutionSpec(tool="x", stdin=True)), "spec.stdin"),
        (in_pool(spec=execution_pb.ExecutionSpec(tool="x", sandbox_id="No Id")), "spec.sandbox_id"),
    ],
)
async def test_a_malformed_run_names_its_field(edge: Edge, request_: pool_pb.RunInPoolRequest, field: str) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.pool_stub.RunInPool(request_)
    assert fields(caught.value) == [field]
    assert edge.pools.asked == []


async def test_a_busy_pool_says_when_to_try_again(edge: Edge) -> None:
    edge.pools.error = errors.PoolBusy("pool", "no member was free", retry_after_s=1.5)
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.pool_stub.RunInPool(in_pool())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason(caught.value) == "POOL_BUSY"
    retry: Any = details(caught.value)["RetryInfo"]
    assert retry.retry_delay.ToMilliseconds() == 1500


async def test_a_pool_that_is_not_there_says_so(edge: Edge) -> None:
    edge.pools.error = errors.PoolNotFound("pool")
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.pool_stub.DeletePool(pool_pb.DeletePoolRequest(pool_id="pool"))
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND")
    assert edge.pools.asked == [("delete", "pool")]


async def test_a_pull_tells_how_far_it_is_and_ends_with_the_image(edge: Edge) -> None:
    call = edge.image_stub.PullImage(image_pb.PullImageRequest(image="x:1"))
    steps = [step async for step in call]
    assert edge.images.asked == ["x:1"]
    assert steps[0] == image_pb.PullImageResponse(
        layer="0123456789ab", status="Downloading", current_bytes=5, total_bytes=10
    )
    assert [step.image_id for step in steps] == ["", "sha256:" + "0" * 64]


async def test_a_pull_that_fails_says_why_after_what_it_told(edge: Edge) -> None:
    edge.images.error = errors.ImageNotFound("x:1", "no registry answers")
    call = edge.image_stub.PullImage(image_pb.PullImageRequest(image="x:1"))
    assert (await call.read()).status == "Downloading"
    with pytest.raises(aio.AioRpcError, match="no registry answers") as caught:
        await call.read()
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
