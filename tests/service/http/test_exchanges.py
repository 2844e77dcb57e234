"""Every recorded exchange: the same status, the same shape, the same texts."""

from __future__ import annotations

import httpx
import pytest

from tests.service.http.recording import EXCHANGES, OURS, RESULTS, replayed


async def test_every_recorded_exchange_is_answered_as_recorded(api: httpx.AsyncClient):
    assert await replayed(api) == []


def test_the_recording_is_complete():
    assert len(EXCHANGES) == 48
    assert {exchange["request"]["path"].split("?")[0].split("/")[1] for exchange in EXCHANGES} == {
        "health", "stats", "sandboxes", "sandbox", "pool",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted({*OURS, *RESULTS}))
def test_what_differs_is_something_that_was_recorded(name: str):
    assert [exchange for exchange in EXCHANGES if exchange["name"] == name]
