"""The canary's look is at one engine: the one that was there at its beginning is there at its end."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import AsyncMock, Mock

import pytest

from enclaved.core.background import Background
from enclaved.core.canary import Canary
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineUnavailable
from enclaved.runtime.inspection import HostFacts

HOST = HostFacts(
    engine_version="20.10",
    cgroup_version=1,
    cgroup_driver="cgroupfs",
    lacking={},
    apparmor=False,
    user_namespaces=False,
    live_restore=True,
    swap_limits=True,
    default_runtime="runc",
    runtimes=("runc",),
    engine_id="first",
)


@pytest.mark.parametrize("other", [replace(HOST, engine_id="second"), replace(HOST, live_restore=False)])
async def test_a_look_that_ends_at_another_engine_is_no_verdict(monkeypatch: pytest.MonkeyPatch, other: HostFacts):
    async def up(record: SandboxRecord, _ttl_s: float) -> None:
        record.container_id, record.plan = "c" * 64, Mock()

    background = Background()
    boot = Mock(canaries={}, up=up, down=AsyncMock(), take_uid=Mock(return_value=5))
    inspector = Mock(host=AsyncMock(side_effect=[HOST, other]), deviations=AsyncMock(return_value=()))
    monkeypatch.setattr(Canary, "_told", AsyncMock(return_value={}))
    canary = Canary(boot=boot, inspector=inspector, background=background, waived=(), needs_ceiling=False)
    with pytest.raises(EngineUnavailable, match="replaced by another one"):
        await canary.look("i")
    await canary.close(5)
    assert (boot.canaries, boot.down.await_count) == ({}, 1)
    await background.close(5)
