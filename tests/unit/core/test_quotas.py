"""What one identity may have and do at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.identity import acting_as
from enclaved.core.policy import Policy, PolicyLimits, built_in_rules
from enclaved.core.quotas import Quotas
from enclaved.core.rates import IDENTITIES_MAX, Rates
from enclaved.errors import LimitReached, PolicyDenied
from enclaved.model import Identity, SandboxRequest
from enclaved.status import to_status
from tests.unit.core.hall import Hall

ANN = Identity("ann", "small")
BEN = Identity("ben", "small")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_turns_come_back_as_time_goes_by_and_never_more_than_a_minutes() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert [rates.take("ann", 3) for _ in range(3)] == [0, 0, 0]
    assert rates.take("ann", 3) == pytest.approx(20.0)
    assert rates.take("ben", 3) == 0
    clock.now += 10
    assert rates.take("ann", 3) == pytest.approx(10.0)
    clock.now += 10
    assert rates.take("ann", 3) == 0
    clock.now += 10_000
    assert [rates.take("ann", 3) for _ in range(4)] == [0, 0, 0, pytest.approx(20.0)]


@given(st.floats(0, 1e8), st.integers(1, 10_000))
def test_who_waits_as_long_as_it_was_told_has_its_turn(now: float, per_minute: int) -> None:
    clock = Clock()
    clock.now = now
    rates = Rates(clock)
    assert rates.take("ann", per_minute, per_minute) == 0
    clock.now += rates.take("ann", per_minute)
    assert rates.take("ann", per_minute) == 0
    assert rates.take("ann", per_minute) > 0


def test_many_turns_are_taken_at_once_or_none_of_them() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert rates.take("ann", 6, 4) == 0
    assert rates.take("ann", 6, 3) == pytest.approx(10.0)
    assert rates.take("ann", 6, 2) == 0
    assert rates.take("ann", 6, 600) == pytest.approx(60.0)
    clock.now += 60
    assert rates.take("ann", 6, 600) == 0


def test_no_limit_is_no_bucket() -> None:
    rates = Rates(Clock())
    assert all(rates.take("ann", 0) == 0 for _ in range(100))
    assert not rates._buckets


def test_a_limit_that_was_lowered_holds_at_once() -> None:
    rates = Rates(Clock())
    assert rates.take("ann", 100) == 0
    assert [rates.take("ann", 2) for _ in range(3)] == [0, 0, pytest.approx(30.0)]


def test_as_many_identities_are_remembered_as_may_be() -> None:
    rates = Rates(Clock())
    for number in range(IDENTITIES_MAX + 10):
        rates.take(str(number), 1)
    assert len(rates._buckets) == IDENTITIES_MAX
    assert rates.take(str(IDENTITIES_MAX + 9), 1) > 0


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 20))
def test_in_no_minute_are_there_more_than_two_minutes_turns(pauses: list[float], per_minute: int) -> None:
    clock = Clock()
    rates = Rates(clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        if rates.take("ann", per_minute) == 0:
            taken.append(clock.now)
    for begin in taken:
        assert sum(begin <= at < begin + 60 for at in taken) <= 2 * per_minute


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    found = Hall()
    yield found
    await found.close()


def limit(hall: Hall, **limits: Any) -> None:
    """Gives the role of Ann and Ben these limits."""
    rules = built_in_rules(PolicyLimits())
    small = replace(rules.roles["default"], name="small", limits=PolicyLimits(**limits))
    hall.sandboxes.policy.rules = replace(rules, roles={**rules.roles, "small": small})


async def test_sandboxes_at_once_are_counted_for_each_identity(hall: Hall) -> None:
    limit(hall, sandboxes_max=2)
    with acting_as(ANN):
        first = await hall.sandboxes.create(SandboxRequest())
        await hall.sandboxes.create(SandboxRequest())
        with pytest.raises(LimitReached) as caught:
            await hall.sandboxes.create(SandboxRequest())
    assert (caught.value.subject, caught.value.limit) == ("identity/ann", "sandboxes_max")
    with acting_as(BEN):
        await hall.sandboxes.create(SandboxRequest())
    await hall.sandboxes.create(SandboxRequest())
    await hall.sandboxes.delete(first.id)
    with acting_as(ANN):
        await hall.sandboxes.create(SandboxRequest())
    assert hall.metrics.value("enclaved_quota_refusals_total", limit="sandboxes_max") == 1


async def test_the_rate_of_creations_is_limited_for_each_identity_and_says_when_again(hall: Hall) -> None:
    limit(hall, creates_per_minute=1)
    with acting_as(ANN):
        await hall.sandboxes.create(SandboxRequest(), request_id="same")
        with pytest.raises(LimitReached) as caught:
            await hall.sandboxes.create(SandboxRequest())
        await hall.sandboxes.create(SandboxRequest(), request_id="same")  # no second sandbox, so no second turn
    assert caught.value.limit == "creates_per_minute"
    assert 0 < caught.value.retry_after_s <= 60
    status = to_status(caught.value)
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.QuotaFailure",
        "google.rpc.RetryInfo",
    ]
    with acting_as(BEN):
        await hall.sandboxes.create(SandboxRequest())


async def test_members_of_pools_take_no_turns_but_count_as_sandboxes(hall: Hall) -> None:
    limit(hall, creates_per_minute=1, sandboxes_max=3)
    with acting_as(ANN):
        for _ in range(3):
            await hall.sandboxes.create(SandboxRequest(), pool_id="p")
        with pytest.raises(LimitReached, match="you have 3 sandboxes, and 2 more"):
            hall.sandboxes.check_room(2, "size")


async def test_whoever_makes_pools_takes_a_turn_for_each_member_and_at_most_a_minutes(hall: Hall) -> None:
    limit(hall, creates_per_minute=3)
    with acting_as(ANN):
        hall.sandboxes.check_room(2, "size")
        hall.sandboxes.check_room(-5, "size")  # while members leave there may be more than are wanted: no turns for it
        with pytest.raises(LimitReached, match="creates_per_minute"):
            hall.sandboxes.check_room(2, "size")
        await hall.sandboxes.create(SandboxRequest())
        with pytest.raises(LimitReached, match="creates_per_minute"):
            await hall.sandboxes.create(SandboxRequest())
    with acting_as(BEN):  # a large one can be made at all
        hall.sandboxes.check_room(30, "size")
        with pytest.raises(LimitReached, match="creates_per_minute"):
            hall.sandboxes.check_room(1, "size")


async def test_a_request_that_policy_refuses_is_counted_by_its_rule(hall: Hall) -> None:
    for _ in range(2):
        with pytest.raises(PolicyDenied, match="privileged"):
            await hall.sandboxes.create(SandboxRequest(privileged=True))
    assert hall.metrics.value("enclaved_policy_refusals_total", rule="privileged") == 2


class FakeRecord:
    def __init__(self, owner: str, active_executions: int) -> None:
        self.id, self.owner, self.active_executions = "box", owner, active_executions


def test_executions_are_limited_in_each_sandbox_in_all_and_by_the_minute(hall: Hall) -> None:
    limit(hall, executions_per_sandbox_max=3, executions_max=4, executions_per_minute=2)
    policy: Policy = hall.sandboxes.policy
    records: Any = [FakeRecord("ann", 3), FakeRecord("ann", 0), FakeRecord("ben", 9)]
    quotas = Quotas(policy, lambda: records, hall.metrics, Clock())

    def refused(record: Any) -> str:
        with acting_as(ANN), pytest.raises(LimitReached) as caught:
            quotas.take_execution(record)
        return caught.value.limit

    assert refused(records[0]) == "executions_per_sandbox_max"
    with acting_as(ANN):
        quotas.take_execution(records[1])
        quotas.take_execution(records[1])
    assert refused(records[1]) == "executions_per_minute"
    records[1].active_executions = 1
    assert refused(records[1]) == "executions_max"
