"""The tables of pools: what is there again, and how much is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enclaved.core.state import DATABASE_NAME, LEASES_KEPT, Baseline, MemberRow, PoolRow, State
from enclaved.model import (
    Lease,
    LeaseKind,
    LeaseOutcome,
    PoolOrigin,
    PoolPlan,
    ResetProof,
    SandboxRequest,
    Verdict,
    Volume,
)

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
PLAN = PoolPlan(
    2,
    SandboxRequest(
        image="x:1",
        tools={"python_executor": {"timeout": 5}},
        env_vars={"A": "b"},
        volumes=(Volume("/a", "/b"),),
        documented_defaults=frozenset({"cpu_limit"}),
    ),
    {"team": "a"},
    ("default",),
    ("json",),
    60.0,
)
LEASE = Lease(
    number=1,
    pool_id="p",
    slot=0,
    sandbox_id="box",
    kind=LeaseKind.RUN,
    execution_id="run",
    tool="python_executor",
    verdict=Verdict.EXITED,
    created_at=MOMENT,
    waited_s=0.1,
    held_s=0.2,
    reset_s=0.3,
    outcome=LeaseOutcome.CLEAN,
    proof=ResetProof(processes_killed=1, mounts_changed=True),
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / DATABASE_NAME)
    yield opened
    opened.close()


def test_of_a_pool_whose_deletion_began_the_next_daemon_knows_so(state: State) -> None:
    row = PoolRow("p", PoolOrigin.CALLER, PLAN, True, MOMENT, deleting=True)
    state.pools.note(row)
    assert state.pools.load() == [row]


@pytest.mark.parametrize("plan", [PLAN, PoolPlan(1)])
def test_a_pool_is_there_again_as_it_was(state: State, plan: PoolPlan) -> None:
    row = PoolRow("p", PoolOrigin.CALLER, plan, True, MOMENT)
    state.pools.save(replace(row, made=False))
    state.pools.note(row)
    assert state.pools.load() == [row]


def test_members_come_back_in_the_order_of_their_slots(state: State) -> None:
    rows = [MemberRow("p", slot, f"box-{slot}", slot + 10, Baseline("m", 1)) for slot in range(3)]
    for row in reversed(rows):
        state.pools.note_member(row)
    assert state.pools.load_members() == rows
    state.pools.forget_member("p", 1)
    state.pools.note_member(replace(rows[0], sandbox_id="other"))
    assert [row.sandbox_id for row in state.pools.load_members()] == ["other", "box-2"]


def test_only_the_last_leases_of_a_pool_are_kept(state: State) -> None:
    state.leases.note(replace(LEASE, pool_id="q"))
    for number in range(1, LEASES_KEPT + 11):
        state.leases.note(replace(LEASE, number=number))
    kept = state.leases.page("p", None, 2 * LEASES_KEPT)
    assert [lease.number for lease in kept] == list(range(LEASES_KEPT + 10, 10, -1))
    assert (state.leases.newest("p"), state.leases.newest("q"), state.leases.newest("none")) == (LEASES_KEPT + 10, 1, 0)


def test_a_lease_is_there_again_as_it_was(state: State) -> None:
    claim = replace(LEASE, number=2, kind=LeaseKind.CLAIM, verdict=None, outcome=LeaseOutcome.CLAIMED, proof=None)
    for lease in (LEASE, claim):
        state.leases.note(lease)
    assert state.leases.page("p", None, 10) == [claim, LEASE]
    assert state.leases.page("p", 2, 10) == [LEASE]


def test_nothing_is_left_of_a_pool_that_is_forgotten(state: State) -> None:
    state.pools.save(PoolRow("p", PoolOrigin.OPERATOR, PLAN, True, MOMENT))
    state.pools.note_member(MemberRow("p", 0, "box", 1, Baseline("m", 0)))
    state.leases.note(LEASE)
    state.pools.forget("p")
    assert (state.pools.load(), state.pools.load_members(), state.leases.page("p", None, 10)) == ([], [], [])
