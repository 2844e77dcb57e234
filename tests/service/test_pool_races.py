"""Pools over the real guest: what comes in between, past the pool or at the wrong moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enclaved.core import crew
from enclaved.core.pool import Pools
from enclaved.model import PoolPlan, SandboxRequest, ToolCall
from tests.service.guest.laboratory import Box, Laboratory
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
