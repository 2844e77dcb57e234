"""Clients that change one sandbox at the same time: no fault, an end that fits some order, and nothing left over."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclaved.errors import EnclaveError, LimitReached, SandboxExists, SandboxLost, SandboxNotFound, WrongState
from enclaved.model import SandboxRequest, SandboxState, SandboxUpdate
from tests.service.guest.laboratory import Laboratory, laboratory

ACTS = ("create", "delete", "delete_later", "pause", "resume", "update", "stop", "start", "use")
EXPECTED = (SandboxExists, SandboxLost, SandboxNotFound, WrongState, LimitReached)
"""What one client may hear because of another. A guest that does not answer, or an engine that refuses, is a fault."""

Clients = list[list[str]]


async def act(lab: Laboratory, name: str, remove_on_exit: bool) -> Any:
    sandboxes = lab.sandboxes
    match name:
        case "create":
            request = SandboxRequest(remove_on_exit=remove_on_exit)
            return await sandboxes.create(request, sandbox_id="box", request_id="")
        case "delete" | "delete_later":
            return await sandboxes.delete("box", wait=name == "delete")
        case "update":
            return await sandboxes.update("box", SandboxUpdate(pids_limit=64, labels={"a": "b"}))
        case "use":
            return await lab.files.stat("box", ".")
        case _:
            return await getattr(sandboxes, name)("box")


async def client(lab: Laboratory, acts: list[str], remove_on_exit: bool) -> Counter[str]:
    heard: Counter[str] = Counter()
    for name in acts:
        try:
            await act(lab, name, remove_on_exit)
        except EXPECTED as error:
            heard[type(error).__name__] += 1
        else:
            heard[name] += 1
    return heard


def check(lab: Laboratory) -> None:
    """What must hold whenever nobody is at work."""
    (row,) = lab.state.sandboxes.load() or (None,)
    record = lab.sandboxes.known("box")
    assert (row is None) is (record is None)
    if record is None or row is None:
        assert lab.runtime._containers == {}
        return
    assert (row.state, row.container_id, row.spec) == (record.state, record.container_id, record.spec)
    assert record.state in (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED)
    assert set(lab.runtime._containers) == ({record.container_id} if record.container_id else set())
    if record.container_id is not None:
        assert lab.runtime._containers[record.container_id].paused is (record.state is SandboxState.PAUSED)
        assert lab.runtime._containers[record.container_id].plan.spec.pids_limit == record.spec.pids_limit
    assert record.state is not SandboxState.RUNNING or record.container_id is not None
    assert not record.limits_due


@pytest.mark.parametrize("remove_on_exit", [True, False])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(clients=st.lists(st.lists(st.sampled_from(ACTS), min_size=1, max_size=6), min_size=2, max_size=3))
async def test_two_clients_and_more_end_in_some_order(remove_on_exit: bool, clients: Clients) -> None:
    async with laboratory() as lab:
        await act(lab, "create", remove_on_exit)
        async with asyncio.timeout(120):
            heard = await asyncio.gather(*(client(lab, acts, remove_on_exit) for acts in clients))
            for record in list(lab.sandboxes.records):
                if record.state is SandboxState.DELETING:
                    await record.gone.wait()
        assert sum(sum(each.values()) for each in heard) == sum(map(len, clients))
        check(lab)
        states = [change.state for record in lab.sandboxes.records for change in record.history]
        assert SandboxState.ERROR not in states
        for record in list(lab.sandboxes.records):
            await lab.sandboxes.delete(record.id)
        check(lab)
        assert list((lab.state_dir / "s").iterdir()) == []
        assert lab.sandboxes._boot.uids == frozenset()


async def test_one_of_several_who_create_the_same_id_gets_it(lab: Laboratory) -> None:
    results = await asyncio.gather(*(act(lab, "create", True) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, SandboxExists) for result in results) == 4
    check(lab)


async def test_callers_who_leave_anywhere_leave_nothing_half_done(lab: Laboratory) -> None:
    for name in ("create", "stop", "start", "pause", "resume", "update", "delete"):
        for rounds in range(4):
            if name != "create" and lab.sandboxes.known("box") is None:
                await act(lab, "create", False)
            doing = asyncio.create_task(act(lab, name, False))
            for _ in range(rounds * 3):
                await asyncio.sleep(0)
            doing.cancel()
            with contextlib.suppress(asyncio.CancelledError, EnclaveError):
                await doing
            record = lab.sandboxes.known("box")
            if record is not None:
                async with record.lock:
                    pass
                if record.state is SandboxState.DELETING:
                    await record.gone.wait()
            check(lab)
