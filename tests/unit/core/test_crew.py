"""Members in the place of others are made no faster than the owner of their pool might make sandboxes."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from enclaved.core.crew import Crew
from enclaved.core.rates import Rates
from enclaved.model import PoolPlan
from tests.unit.core.pool_stand_ins import FakePolicy


class Clock:
    """A time that goes by in sleeps alone."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


@pytest.mark.parametrize(("creates_per_minute", "took_s"), [(0, 0.0), (2, 240.0)])
async def test_replacements_come_no_faster_than_the_owner_might_make_sandboxes(
    monkeypatch: pytest.MonkeyPatch, creates_per_minute: int, took_s: float
):
    clock = Clock()
    parts = Mock(sandboxes=Mock(policy=FakePolicy(creates_per_minute=creates_per_minute)))
    crew = Crew("p", PoolPlan(1, refill_per_s=100.0), parts)
    crew._rates = Rates(clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    for _ in range(10):
        async with crew.turn(paced=True):
            pass
    assert took_s <= clock.now < took_s + 2.0
    for _ in range(10):  # what a caller asked for was counted when it asked
        async with crew.turn(paced=False):
            pass
    assert clock.now < took_s + 2.0
