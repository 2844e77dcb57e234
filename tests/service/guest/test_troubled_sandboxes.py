"""Sandboxes that cannot be made, stopped or removed as they should, and what an earlier daemon left of them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from enclaved.agent import link
from enclaved.core import boot, creation, endings, leftovers
from enclaved.core.ownership import Ownership
from enclaved.errors import (
    EngineRefused,
    EngineUnavailable,
    GuestUnavailable,
    SandboxExists,
    SandboxNotFound,
    WrongState,
)
from enclaved.model import SandboxRequest, SandboxState, Verdict
from enclaved.runtime.base import ContainerPlan, ContainerRecord
from tests.service.guest.laboratory import Box, Laboratory, first_output, follow, printed, until
from tests.service.guest.tuning import replace_guests

SILENT = "import time\ntime.sleep(600)\n"


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "RETRY_S", 0.01)
    monkeypatch.setattr(leftovers, "RETRY_S", 0.01)
    monkeypatch.setattr(boot, "STATUS_EVERY_S", 0.05)
    monkeypatch.setattr(link, "PARK_DEADLINE_S", 0.2)


class Removals:
    """Removals of a laboratory's runtime, the first of which fail."""

    def __init__(self, lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lab, self._remove = lab, lab.runtime.remove
        self.to_fail = 0
        self.users_taken: list[int] = []
        """How many user ids were in use at each."""
        monkeypatch.setattr(lab.runtime, "remove", self.remove)

    async def remove(self, container_id: str) -> None:
        self.users_taken.append(len(self._lab.sandboxes._boot.uids))
        if self.to_fail:
            self.to_fail -= 1
            raise EngineUnavailable("remove a container", "no answer")
        await self._remove(container_id)


@pytest.fixture
def removals(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> Removals:
    """See `Removals`."""
    return Removals(lab, monkeypatch)


async def test_what_could_not_be_made_is_removed_as_soon_as_the_engine_lets_it(
    lab: Laboratory, removals: Removals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "HELLO_DEADLINE_S", 0.1)
    replace_guests(lab, SILENT)
    removals.to_fail = 3
    with pytest.raises(EngineRefused, match=r"its guest did not report within 0\.1 s"):
        await lab.sandboxes.create(SandboxRequest(), sandbox_id="mine")
    sandbox = lab.sandboxes.get("mine")
    assert sandbox.state is SandboxState.DELETING
    assert sandbox.state_reason.startswith("it could not be created: ")
    with monkeypatch.context() as patch:
        patch.setattr(creation, "GONE_WITHIN_S", 0.01)
        with pytest.raises(SandboxExists, match="still being deleted"):
            await lab.sandboxes.create(SandboxRequest(), sandbox_id="mine")
    with pytest.raises(WrongState):
        await lab.sandboxes.start("mine")

    await until(lambda: lab.sandboxes.list().sandboxes == ())
    assert await lab.runtime.list_records() == []
    assert removals.users_taken == [1, 1, 1, 1]  # it was not given back before its container was gone
    assert lab.sandboxes._boot.uids == set()
    assert list((lab.state_dir / "s").iterdir()) == []


async def test_a_create_whose_caller_left_is_undone_as_soon_as_the_engine_lets_it(
    lab: Laboratory, removals: Removals
) -> None:
    replace_guests(lab, SILENT)
    removals.to_fail = 2
    creating = asyncio.create_task(lab.sandboxes.create(SandboxRequest()))
    await until(lambda: bool(lab.runtime._containers))
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await until(lambda: lab.sandboxes.list().sandboxes == ())
    assert not lab.runtime._containers
    assert lab.sandboxes._boot.uids == set()


async def test_what_could_not_be_started_again_is_removed_as_soon_as_the_engine_lets_it(
    lab: Laboratory, removals: Removals, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lab.box(remove_on_exit=True)
    await lab.sandboxes.stop(box.id)
    monkeypatch.setattr(boot, "HELLO_DEADLINE_S", 0.1)
    replace_guests(lab, SILENT)
    removals.to_fail = 2
    with pytest.raises(EngineRefused, match="did not report"):
        await lab.sandboxes.start(box.id)
    assert lab.sandboxes.get(box.id).state is SandboxState.ERROR  # not one that only seems to be startable
    with pytest.raises(WrongState):
        await lab.sandboxes.start(box.id)
    await until(lambda: not lab.runtime._containers)
    await lab.sandboxes.delete(box.id)
    with pytest.raises(SandboxNotFound):
        lab.sandboxes.get(box.id)


async def test_a_sandbox_that_could_not_be_started_again_can_be_tried_again(
    lab: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lab.box(remove_on_exit=True)
    await lab.sandboxes.stop(box.id)
    with monkeypatch.context() as patch:
        patch.setattr(boot, "HELLO_DEADLINE_S", 0.0)
        with pytest.raises(EngineRefused):
            await lab.sandboxes.start(box.id)
    assert lab.sandboxes.get(box.id).state is SandboxState.STOPPED
    assert not lab.runtime._containers
    await lab.sandboxes.start(box.id)
    assert printed(await box.shell("echo well")) == "well\n"


async def test_a_stop_that_the_guest_does_not_confirm_is_an_error_and_the_end_of_the_sandbox(lab: Laboratory) -> None:
    box = await lab.box(remove_on_exit=False)
    running = await box.open_shell("echo begun; exec sleep 600")
    assert await first_output(running) == b"begun\n"
    following = asyncio.create_task(follow(running))
    in_line = [await box.open_python("import time\ntime.sleep(600)") for _ in range(2)]
    os.kill(box.guest_pid(), signal.SIGSTOP)
    with pytest.raises(GuestUnavailable):
        await lab.sandboxes.stop(box.id)
    sandbox = lab.sandboxes.get(box.id)
    assert (sandbox.state, sandbox.active_executions) == (SandboxState.ERROR, 0)
    assert sandbox.state_reason.startswith("it could not be stopped: ")
    for execution in (running, *in_line):
        assert (await execution.ended).verdict is Verdict.SANDBOX_LOST
        finished = (await follow(execution)).finished
        assert finished is not None
        assert finished.verdict is Verdict.SANDBOX_LOST
    finished = (await following).finished
    assert finished is not None
    assert finished.verdict is Verdict.SANDBOX_LOST
    await until(lambda: not lab.runtime._containers)
    with pytest.raises(WrongState):
        await lab.sandboxes.start(box.id)
    await lab.sandboxes.delete(box.id)


async def test_a_stop_waits_for_a_guest_that_is_just_coming_back(lab: Laboratory) -> None:
    """Its files would be lost with it."""
    box = await lab.box(remove_on_exit=False)
    await box.shell("echo kept > file")
    guest = box.guest_pid()
    peer = box.record.running_link()._peer
    assert peer is not None
    peer.abort()
    await lab.sandboxes.stop(box.id)
    await lab.sandboxes.start(box.id)
    assert box.guest_pid() == guest
    assert printed(await box.shell("cat file")) == "kept\n"


@pytest.mark.parametrize("act", ["stop", "delete"])
async def test_a_removal_that_fails_leaves_an_error_and_in_the_end_no_container(
    lab: Laboratory, removals: Removals, act: str
) -> None:
    box = await lab.box()
    running = await box.open_shell("sleep 600")
    removals.to_fail = 2
    with pytest.raises(EngineUnavailable):
        await getattr(lab.sandboxes, act)(box.id)
    assert lab.sandboxes.get(box.id).state is (SandboxState.ERROR if act == "stop" else SandboxState.DELETING)
    assert (await running.ended).verdict is Verdict.SANDBOX_LOST
    if act == "stop":
        await until(lambda: not lab.runtime._containers)
    else:  # whoever wanted it gone knows that it is not, and asks again
        with pytest.raises(EngineUnavailable):
            await lab.sandboxes.delete(box.id)
    await lab.sandboxes.delete(box.id)
    assert lab.sandboxes.list().sandboxes == ()
    assert not lab.runtime._containers


# -- what an earlier daemon left ---------------------------------------------------------------------------------


class Engine:
    """Containers that nobody made here, beside those of a laboratory."""

    def __init__(self, lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._list, self._remove = lab.runtime.list_records, lab.runtime.remove
        self.strangers: dict[str, ContainerRecord] = {}
        self.looks = 0
        monkeypatch.setattr(lab.runtime, "list_records", self.list_records)
        monkeypatch.setattr(lab.runtime, "remove", self.remove)

    def add(self, container_id: str, labels: dict[str, str]) -> None:
        self.strangers[container_id] = ContainerRecord(container_id, labels, running=True)

    async def list_records(self) -> list[ContainerRecord]:
        self.looks += 1
        return [*self.strangers.values(), *await self._list()]

    async def remove(self, container_id: str) -> None:
        if self.strangers.pop(container_id, None) is None:
            await self._remove(container_id)


@pytest.fixture
def engine(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """See `Engine`."""
    return Engine(lab, monkeypatch)


@pytest.mark.parametrize("how", ["made", "given up"])
async def test_a_leftover_with_the_id_of_a_sandbox_that_is_being_made_is_looked_at_again(
    lab: Laboratory, engine: Engine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made, go = asyncio.Event(), asyncio.Event()
    create = lab.runtime.create

    async def slow_create(plan: ContainerPlan) -> str:
        container_id = await create(plan)
        made.set()
        try:
            await go.wait()
        except asyncio.CancelledError:
            await lab.runtime.remove(container_id)
            raise
        return container_id

    monkeypatch.setattr(lab.runtime, "create", slow_create)
    engine.add("leftover", Ownership.of(lab.state_dir).labels("mine", 1))
    creating = asyncio.create_task(lab.sandboxes.create(SandboxRequest(), sandbox_id="mine"))
    await made.wait()
    clearing = asyncio.create_task(lab.leftovers.clear(lab.state_dir, None))
    await until(lambda: engine.looks >= 3)
    assert not clearing.done()
    assert set(engine.strangers) == {"leftover"}  # which of the two is the sandbox's is not known yet
    assert len(lab.runtime._containers) == 1
    if how == "made":
        go.set()
        assert (await creating).state is SandboxState.RUNNING
    else:
        creating.cancel()
    await clearing
    assert engine.strangers == {}
    assert len(lab.runtime._containers) == (1 if how == "made" else 0)
    if how == "made":
        assert printed(await Box(lab, "mine").shell("echo here")) == "here\n"
