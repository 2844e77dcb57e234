"""Sandboxes that are changed while they live."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from enclaved.core.spec_fields import MIB
from enclaved.errors import EnclaveError, EngineRefused, InvalidRequest, PolicyDenied, SandboxNotFound, WrongState
from enclaved.model import SandboxRequest, SandboxState, SandboxUpdate
from tests.service.guest.laboratory import Box, Laboratory, printed, until


async def test_a_time_to_live_is_renewed_from_now_on_and_kept_when_it_is_stopped(lab: Laboratory) -> None:
    box = await lab.box(ttl_s=1.5)
    before = lab.sandboxes.get(box.id)
    after = await lab.sandboxes.update(box.id, SandboxUpdate(ttl_s=600))
    assert timedelta(seconds=598) < after.expires_at - before.expires_at < timedelta(seconds=601)
    await asyncio.sleep(1.7)
    assert printed(await box.shell("echo lives")) == "lives\n"


async def test_a_time_to_live_is_made_shorter(lab: Laboratory, box: Box) -> None:
    await lab.sandboxes.update(box.id, SandboxUpdate(ttl_s=1))
    await until(lambda: lab.sandboxes.known(box.id) is None)


async def test_the_guest_is_told_of_its_end(lab: Laboratory, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(box.record.running_link(), "send", lambda header, payload=b"": sent.append(dict(header)))
    await lab.sandboxes.update(box.id, SandboxUpdate(ttl_s=600))
    assert [header["type"] for header in sent] == ["expire"]
    assert 590 < sent[0]["in_s"] <= 600


async def test_labels_are_replaced_and_limits_reach_the_engine(lab: Laboratory, box: Box) -> None:
    await lab.sandboxes.update(box.id, SandboxUpdate(labels={"team": "red"}))
    changed = await lab.sandboxes.update(
        box.id, SandboxUpdate(memory_limit_bytes=1024 * MIB, cpu_limit=0.5, pids_limit=64)
    )
    assert (changed.labels, changed.spec.cpu_limit, changed.spec.pids_limit) == ({"team": "red"}, 0.5, 64)
    assert [each.id for each in lab.sandboxes.list(labels={"team": "red"}).sandboxes] == [box.id]
    assert box.record.container_id is not None
    assert lab.runtime._containers[box.record.container_id].plan.spec == changed.spec
    await lab.sandboxes.update(box.id, SandboxUpdate())
    assert lab.sandboxes.get(box.id) == changed


@pytest.mark.parametrize(
    ("update", "error", "text"),
    [
        (SandboxUpdate(ttl_s=0), InvalidRequest, "ttl_s"),
        (SandboxUpdate(ttl_s=float("nan")), InvalidRequest, "ttl_s"),
        (SandboxUpdate(ttl_s=1e8), PolicyDenied, "ttl_s"),
        (SandboxUpdate(cpu_limit=100), PolicyDenied, "cpu_limit"),
        (SandboxUpdate(pids_limit=1), InvalidRequest, "pids_limit"),
        (SandboxUpdate(memory_limit_bytes=2**45), PolicyDenied, "memory_limit_bytes"),
        (SandboxUpdate(memory_limit_bytes=80 * MIB), InvalidRequest, "file systems"),
        (SandboxUpdate(labels={"enclaved.x": ""}), InvalidRequest, "labels"),
    ],
)
async def test_what_is_refused_changes_nothing(
    lab: Laboratory, box: Box, update: SandboxUpdate, error: type[EnclaveError], text: str
) -> None:
    before = lab.sandboxes.get(box.id)
    with pytest.raises(error, match=text):
        await lab.sandboxes.update(box.id, replace(update, labels={"a": "b"}) if update.labels is None else update)
    assert lab.sandboxes.get(box.id) == before


async def test_what_the_engine_refuses_changes_nothing(
    lab: Laboratory, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise EngineRefused("change the limits", "in use")

    before = lab.sandboxes.get(box.id)
    monkeypatch.setattr(lab.runtime, "update", refuse)
    with pytest.raises(EngineRefused):
        await lab.sandboxes.update(box.id, SandboxUpdate(ttl_s=60, labels={"a": "b"}, memory_limit_bytes=700 * MIB))
    assert lab.sandboxes.get(box.id) == before


async def test_a_stopped_one_is_changed_and_one_that_was_lost_keeps_its_limits(lab: Laboratory) -> None:
    box = await lab.box()
    await lab.sandboxes.stop(box.id)
    await lab.sandboxes.update(box.id, SandboxUpdate(pids_limit=99))
    assert (await lab.sandboxes.start(box.id)).spec.pids_limit == 99
    lab.sandboxes.lose(box.record, "the test")
    assert lab.sandboxes.get(box.id).state is SandboxState.ERROR
    with pytest.raises(WrongState, match="delete it"):
        await lab.sandboxes.update(box.id, SandboxUpdate(pids_limit=98))
    await lab.sandboxes.update(box.id, SandboxUpdate(labels={"why": "lost"}))
    await lab.sandboxes.delete(box.id)
    with pytest.raises(SandboxNotFound):
        await lab.sandboxes.update(box.id, SandboxUpdate(ttl_s=60))


@pytest.mark.parametrize("change", [SandboxUpdate(pids_limit=40), SandboxUpdate(labels={}), SandboxUpdate(ttl_s=60)])
async def test_a_member_of_a_pool_is_not_changed(lab: Laboratory, change: SandboxUpdate) -> None:
    before = await lab.sandboxes.create(SandboxRequest(), pool_id="p")
    with pytest.raises(WrongState, match="is a member of pool 'p'; change the pool, or claim the sandbox"):
        await lab.sandboxes.update(before.id, change)
    assert lab.sandboxes.get(before.id).spec == before.spec
