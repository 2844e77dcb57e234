"""Pools under a policy: members are made with the rights of whoever made the pool, and lent to who could have such."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from enclaved.core.identity import acting_as
from enclaved.core.policy import PolicyLimits, built_in_rules
from enclaved.core.pool import Pools
from enclaved.errors import LimitReached, PolicyDenied
from enclaved.model import ClaimWish, Identity, PoolPlan, SandboxRequest, SandboxUpdate, ToolCall
from tests.service.guest.laboratory import Laboratory, laboratory, until
from tests.service.test_pool import all_idle, parts_of

GIB = 1024**3
WIDE = Identity("ann", "wide")
SMALL = Identity("ben", "small")
PLAIN = Identity("eve")


@pytest.fixture
async def lab() -> AsyncIterator[Laboratory]:
    """A place with a role that may have more memory than the default one, and one that may have less."""
    async with laboratory() as made:
        rules = built_in_rules(PolicyLimits())
        default = rules.roles["default"]
        wide = replace(default, name="wide", limits=replace(default.limits, memory_max_bytes=8 * GIB))
        small = replace(
            default, name="small", limits=replace(default.limits, memory_max_bytes=GIB // 2, sandboxes_max=1)
        )
        made.sandboxes.policy.rules = replace(rules, roles={**rules.roles, "wide": wide, "small": small})
        yield made


@pytest.fixture
async def pools(lab: Laboratory) -> AsyncIterator[Pools]:
    made = Pools(parts_of(lab))
    yield made
    made.close()


def call() -> ToolCall:
    return ToolCall("", "python_executor", {"code": "print(1)"})


def owner(lab: Laboratory, sandbox_id: str) -> str:
    return lab.sandboxes.get(sandbox_id).owner


async def test_new_members_are_made_as_who_made_the_pool_whoever_uses_it(lab: Laboratory, pools: Pools) -> None:
    with acting_as(WIDE):
        (first,) = (
            await pools.initialize(PoolPlan(1, SandboxRequest(memory_limit_bytes=6 * GIB)), pool_id="p")
        ).sandbox_ids
    before = lab.sandboxes.known(first)
    with acting_as(SMALL):  # anybody may, and the slot is filled again in the course of it
        await lab.sandboxes.delete(first)
    await until(lambda: lab.sandboxes.known(first) not in (None, before))
    await all_idle(lab, 1)
    (member,) = pools.get("p").members
    found = lab.sandboxes.get(member.sandbox_id)
    assert (found.owner, found.spec.role, found.spec.memory_limit_bytes) == ("ann", "wide", 6 * GIB)


async def test_who_made_a_pool_is_written_down(lab: Laboratory, pools: Pools) -> None:
    with acting_as(WIDE):
        await pools.initialize(PoolPlan(1), pool_id="p")
    (row,) = lab.state.pools.load()
    assert row.owner == WIDE


async def test_a_member_is_lent_to_who_could_have_such_a_sandbox(lab: Laboratory, pools: Pools) -> None:
    with acting_as(WIDE):
        await pools.initialize(PoolPlan(1, SandboxRequest(memory_limit_bytes=2 * GIB)), pool_id="p")
    with acting_as(PLAIN):
        _, result = await pools.run("p", call())
        assert result.stdout == b"1\n"
    with acting_as(SMALL):
        for attempt in (pools.run("p", call()), pools.claim("p", ClaimWish())):
            with pytest.raises(PolicyDenied) as caught:
                await attempt
            assert (caught.value.rule, caught.value.limit) == ("resources", str(GIB // 2))


async def test_a_claim_counts_for_who_claims(lab: Laboratory, pools: Pools) -> None:
    with acting_as(PLAIN):
        await pools.initialize(PoolPlan(2), pool_id="p")
    with acting_as(SMALL):
        claimed = await pools.claim("p", ClaimWish())
        with pytest.raises(LimitReached, match="sandboxes_max 1"):
            await pools.claim("p", ClaimWish())
    assert owner(lab, claimed.sandbox.id) == "ben"
    await all_idle(lab, 2)
    with acting_as(SMALL), pytest.raises(PolicyDenied):
        await lab.sandboxes.update(claimed.sandbox.id, SandboxUpdate(memory_limit_bytes=GIB))


async def test_claims_at_the_same_time_get_no_more_than_the_limit(lab: Laboratory, pools: Pools) -> None:
    with acting_as(PLAIN):
        await pools.initialize(PoolPlan(3), pool_id="p")
    with acting_as(SMALL):  # other limits are the engine's business, and take a moment
        wish = ClaimWish(change=SandboxUpdate(pids_limit=100))
        found = await asyncio.gather(*(pools.claim("p", wish) for _ in range(3)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == ["Claimed", "LimitReached", "LimitReached"]
    assert sum(each.owner == "ben" for each in lab.sandboxes.list().sandboxes) == 1
