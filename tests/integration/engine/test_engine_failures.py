"""An engine that is killed, frozen, cut off or full: what runs goes on or is told to be lost, and nothing stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.integration.engine import scenarios
from tests.integration.engine.private import private_engine
from tests.integration.engine.scenarios import Outcome, Site, site

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

SANDBOXES = 2
FROZEN_S = 4.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(default_image: str) -> AsyncIterator[Site]:
    """A daemon on a private engine, which every scenario leaves as it found it."""
    async with private_engine() as engine, site(engine) as found:
        yield found


def scenario(name: str) -> Callable[[Site], Awaitable[Outcome]]:
    """A scenario at the size of a test."""
    return {
        "killed with live-restore": lambda here: scenarios.killed_and_restored(here, SANDBOXES),
        "killed without": lambda here: scenarios.killed_and_not_restored(here, SANDBOXES),
        "upgraded with live-restore": lambda here: scenarios.restarted(here, SANDBOXES, live_restore=True),
        "restarted without": lambda here: scenarios.restarted(here, SANDBOXES, live_restore=False),
        "frozen": lambda here: scenarios.frozen(here, SANDBOXES, FROZEN_S),
        "cut off": lambda here: scenarios.cut_off(here, SANDBOXES),
        "full": lambda here: scenarios.full(here, SANDBOXES),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "killed with live-restore",
        "killed without",
        "upgraded with live-restore",
        "restarted without",
        "frozen",
        "cut off",
        "full",
    ],
)
async def test_what_happens_to_the_engine_has_a_defined_outcome(here: Site, name: str):
    outcome = await scenario(name)(here)
    assert outcome.faults == [], f"{outcome}\n{here.daemon.text[-4000:]}\n{here.engine.said()}"
