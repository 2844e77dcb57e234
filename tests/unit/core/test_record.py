"""A sandbox as it is written down, and how long it still has when it is taken up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enclaved.core import record as module
from enclaved.core.record import SandboxRecord, boot_id
from enclaved.core.state import SandboxRow
from enclaved.metrics import Metrics
from enclaved.model import SandboxState
from tests.service.core_fakes import SPEC

TTL_S = 1000.0


@pytest.fixture(autouse=True)
def _forget_the_boot() -> Iterator[None]:
    boot_id.cache_clear()
    yield
    boot_id.cache_clear()


def made(age_s: float) -> SandboxRow:
    """A sandbox that began to live so long ago, on a machine whose clock was then set back by a day."""
    return SandboxRecord(
        id="box",
        number=3,
        spec=replace(SPEC, ttl_s=TTL_S),
        adjustments=(),
        labels={"team": "red"},
        uid=1001,
        directory=Path("/somewhere"),
        metrics=Metrics(version="0"),
        pool_id="pool",
        state=SandboxState.STOPPED,
        state_reason="stopped on request",
        container_id="c",
        born=asyncio.get_running_loop().time() - age_s,
        created_at=datetime.now(UTC) + timedelta(days=1),
    ).row()


def remaining_s(row: SandboxRow) -> float:
    record = SandboxRecord.of(row, Metrics(version="0"))
    return record.born + record.spec.ttl_s - asyncio.get_running_loop().time()


async def test_a_record_is_what_was_written_down() -> None:
    row = made(10)
    found = SandboxRecord.of(row, Metrics(version="0"))
    assert found.row() == replace(row, expires_monotonic_s=found.row().expires_monotonic_s)
    assert found.row().expires_monotonic_s == pytest.approx(row.expires_monotonic_s)


async def test_a_step_of_the_wall_clock_changes_no_time_to_live() -> None:
    assert remaining_s(made(400)) == pytest.approx(600, abs=30)


async def test_after_a_boot_the_wall_clock_says_how_old_a_sandbox_is() -> None:
    row = replace(made(0), boot_id="another", created_at=datetime.now(UTC) - timedelta(seconds=400))
    assert remaining_s(row) == pytest.approx(600, abs=30)


async def test_where_nobody_says_which_boot_it_is_the_wall_clock_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(module.BOOT_ID_VARIABLE, raising=False)
    monkeypatch.setattr(module, "_BOOT_ID_FILE", tmp_path / "hidden")
    assert boot_id() == ""
    row = replace(made(0), created_at=datetime.now(UTC) - timedelta(seconds=400))
    assert remaining_s(row) == pytest.approx(600, abs=30)


async def test_a_service_manager_may_say_which_boot_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = boot_id()
    assert len(kernels) == 32
    boot_id.cache_clear()
    monkeypatch.setenv(module.BOOT_ID_VARIABLE, kernels)
    monkeypatch.setattr(module, "_BOOT_ID_FILE", Path("/nonexistent"))
    assert boot_id() == kernels
