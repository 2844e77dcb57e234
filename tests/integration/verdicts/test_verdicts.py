"""What is said of how programs ended is true, also where they do their best to have it otherwise."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.verdicts.campaign import campaign
from tests.integration.verdicts.cases import KINDS

RUNS = 20


@pytest.mark.parametrize("kind", KINDS)
def test_no_end_is_taken_for_another(default_image: str, kind: str) -> None:
    tally = asyncio.run(campaign({kind: RUNS}, seed=1, parallel=2))
    assert tally.runs == {kind: RUNS}
    assert tally.described == []
