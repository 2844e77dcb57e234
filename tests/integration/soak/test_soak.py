"""Sandboxes that come and go leave nothing, whatever was done with them."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.soak.campaign import IN_FLIGHT, SANDBOXES, SLOPE_MOST_MIB, WARM, WARM_LONG, soak

FEW = 24


def test_nothing_stays_of_sandboxes_that_come_and_go(default_image: str, request: pytest.FixtureRequest) -> None:
    is_full = request.config.getoption("--hypothesis-profile") == "full"
    count = SANDBOXES if is_full else FEW
    found = asyncio.run(soak(count, IN_FLIGHT, patient=is_full))
    assert found.problems == []
    assert (len(found.samples), found.reaped) == (count, 0)
    assert found.tally.lives.total() == count + (WARM_LONG if is_full else WARM)
    if is_full:  # a short run cannot tell growth from caches that fill
        assert found.slope_mib <= SLOPE_MOST_MIB
