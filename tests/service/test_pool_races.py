"""Pools over the real guest: what comes in between, past the pool or at the wrong moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclaved.core import crew
from enclaved.core.contexts import Contexts
from enclaved.core.pool import Pools
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineUnavailable, PoolBusy
from enclaved.model import ClaimWish, PoolPlan, SandboxRequest, SandboxState, SandboxUpdate, ToolCall, Verdict
from tests.service.guest.laboratory import Box, Laboratory, ended, until
from tests.service.test_pool import all_idle, lab, pools, shell

__all__ = ["lab", "pools"]


async def test_what_is_run_past_the_pool_while_a_member_is_warmed_is_not_there_for_the_next_call(
    lab: Laboratory, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PoolPlan(1, SandboxRequest(), contexts=("default",), preload=("json",))
    (member,) = (await pools.initialize(plan, pool_id="p")).sandbox_ids
    began, may_end, warm = asyncio.Event(), asyncio.Event(), crew.warm

    async def slow(*given: Any) -> int:
        began.set()
        await may_end.wait()
        return await warm(*given)

    monkeypatch.setattr("enclaved.core.crew.warm", slow)
    await shell(pools, "true")
    await began.wait()
    assert (await Box(lab, member).shell("echo poison > planted; cat planted")).stdout == b"poison\n"
    may_end.set()
    _, result = await pools.run("p", ToolCall("", "shell_executor", {"command": "cat planted"}))
    assert b"poison" not in result.stdout
    await all_idle(lab, 1)


NAMED = ToolCall("", "python_executor", {"code": "import time; print(time.time_ns())"}, execution_id="mine")


async def one_of_a_pool(lab: Laboratory, pools: Pools) -> SandboxRecord:
    (member,) = (await pools.initialize(PoolPlan(1, SandboxRequest()), pool_id="p")).sandbox_ids
    return lab.sandboxes.record(member)


async def test_a_call_that_is_sent_again_gets_its_answer_though_its_member_was_claimed(
    lab: Laboratory, pools: Pools
) -> None:
    record = await one_of_a_pool(lab, pools)
    first = await pools.run("p", NAMED)
    assert (await pools.claim("p", ClaimWish())).sandbox.id == record.id
    assert await pools.run("p", NAMED, 0.0) == first


async def test_a_call_that_is_sent_again_gets_its_answer_though_its_member_was_replaced(
    lab: Laboratory, pools: Pools
) -> None:
    record = await one_of_a_pool(lab, pools)
    first = await pools.run("p", NAMED)
    await all_idle(lab, 1)
    await lab.sandboxes.delete(record.id)
    assert await pools.run("p", NAMED) == first
    await shell(pools, "true")  # in the new one, of the same id
    assert await pools.run("p", NAMED) == first


async def test_a_call_whose_caller_left_is_told_its_end_when_it_is_sent_again(lab: Laboratory, pools: Pools) -> None:
    record = await one_of_a_pool(lab, pools)
    call = ToolCall("", "shell_executor", {"command": "echo begun; sleep 600"}, execution_id="mine")
    left = asyncio.create_task(pools.run("p", call))
    await until(lambda: lab.executions.knows("mine"))
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert (await pools.claim("p", ClaimWish())).sandbox.id == record.id
    sandbox_id, result = await pools.run("p", call, 0.0)
    assert (sandbox_id, ended(result).verdict) == (record.id, Verdict.CANCELLED)


async def test_a_member_that_is_lost_as_it_is_claimed_is_not_handed_over(lab: Laboratory, pools: Pools) -> None:
    (member,) = (await pools.initialize(PoolPlan(1, SandboxRequest()), pool_id="p")).sandbox_ids
    record = lab.sandboxes.record(member)
    async with record.lock:
        claim = asyncio.create_task(pools.claim("p", ClaimWish(request_id="once")))
        await until(lambda: pools.role(member) == "busy")
        lab.sandboxes.lose(record, "its container was removed")
    claimed = (await claim).sandbox
    assert (claimed.state, lab.sandboxes.record(claimed.id) is record) == (SandboxState.RUNNING, False)
    assert (record.pool_id, record.request_id) == ("p", "")


async def test_a_claim_that_comes_to_nothing_leaves_no_trace_of_its_request(lab: Laboratory, pools: Pools) -> None:
    (member,) = (await pools.initialize(PoolPlan(1, SandboxRequest()), pool_id="p")).sandbox_ids
    record = lab.sandboxes.record(member)
    wish = ClaimWish(request_id="once")
    async with record.lock:
        claim = asyncio.create_task(pools.claim("p", wish, 0.0))
        await until(lambda: pools.role(member) == "busy")
        lab.sandboxes.lose(record, "its container was removed")
    with pytest.raises(PoolBusy):
        await claim
    await until(lambda: record.is_forgotten)
    assert (await pools.claim("p", wish)).sandbox.state is SandboxState.RUNNING


async def test_a_claim_that_the_engine_fails_leaves_the_member_to_the_pool_also_for_the_next_daemon(
    lab: Laboratory, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    (member,) = (await pools.initialize(PoolPlan(1, SandboxRequest()), pool_id="p")).sandbox_ids

    async def away(*_: Any) -> None:
        raise EngineUnavailable("unix:///x", "away")

    monkeypatch.setattr(lab.runtime, "update", away)
    rows: list[tuple[str, str]] = []
    give_back = pools._pools["p"].members.give_back_unfit

    def look(given: Any) -> None:
        rows.extend((row.pool_id, row.request_id) for row in lab.state.sandboxes.load() if row.id == member)
        give_back(given)

    monkeypatch.setattr(pools._pools["p"].members, "give_back_unfit", look)
    with pytest.raises(EngineUnavailable):
        await pools.claim("p", ClaimWish(SandboxUpdate(pids_limit=40), request_id="once"))
    assert rows == [("p", "")]


async def test_a_context_that_is_opened_past_the_pool_is_closed_before_the_next_call(
    lab: Laboratory, pools: Pools
) -> None:
    record = await one_of_a_pool(lab, pools)
    contexts = Contexts(lab.sandboxes)
    await contexts.open(record.id, "planted")
    await shell(pools, "true")
    await all_idle(lab, 1)
    assert await contexts.list(record.id) == ()
    await contexts.open(record.id, "planted")
    claimed = (await pools.claim("p", ClaimWish())).sandbox.id
    assert await contexts.list(claimed) == ()
