"""The reaper by itself: what it finds once it only remembers, and what has an owner by then stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enclaved.core.ownership import Ownership
from enclaved.core.reaper import Reaper
from enclaved.core.state import DATABASE_NAME, State
from enclaved.errors import EngineRefused
from enclaved.metrics import Metrics
from enclaved.model import SandboxState
from enclaved.runtime.base import ContainerRecord

OURS = Ownership(b"ours")


@dataclass
class Around:
    """Everything that a reaper looks at: the sandboxes, the engine and the host in one."""

    state_dir: Path
    records: list[Any] = field(default_factory=list)
    uids: set[int] = field(default_factory=set)
    containers: dict[str, Mapping[str, str]] = field(default_factory=dict)
    stubborn: str = ""
    guest_file: Path = Path("guest-0000000000000000.py")
    is_closing: bool = False
    canaries: Mapping[str, Any] = field(default_factory=dict)
    idle_networks: list[str] = field(default_factory=list)

    @property
    def networks(self) -> Around:
        return self

    async def sweep(self) -> list[str]:
        gone, self.idle_networks = self.idle_networks, []
        return gone

    def known(self, sandbox_id: str) -> Any:
        return next((record for record in self.records if record.id == sandbox_id), None)

    async def closes_within(self, seconds: float) -> bool:
        return self.is_closing

    def return_uid(self, uid: int) -> None:
        self.uids.discard(uid)

    async def list_records(self) -> list[ContainerRecord]:
        await asyncio.sleep(0)
        return [ContainerRecord(name, labels, True) for name, labels in self.containers.items()]

    async def remove(self, container_id: str) -> None:
        if container_id == self.stubborn:
            raise EngineRefused("remove a container", "no")
        del self.containers[container_id]

    def knows(self, execution_id: str) -> bool:
        return False

    def settle(self) -> None:
        pass

    def sandbox(self, name: str, uid: int, container_id: str | None) -> None:
        state = SandboxState.INITIALIZING if container_id is None else SandboxState.RUNNING
        directory = self.state_dir / "s" / f"{uid:08x}"
        self.records.append(
            SimpleNamespace(
                id=name,
                number=1,
                uid=uid,
                gid=uid,
                container_id=container_id,
                state=state,
                directory=directory,
                born=1e18,
            )
        )


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / DATABASE_NAME)
    yield opened
    opened.close()


@pytest.fixture
async def reaper(around: Around, state: State) -> Reaper:
    everything: Any = around
    return Reaper(
        runtime=everything,
        boot=everything,
        ownership=OURS,
        sandboxes=everything,
        executions=everything,
        state=state,
        metrics=Metrics(version="0"),
        state_dir=around.state_dir,
        every_s=1,
    )


def counted(reaper: Reaper, what: str, kind: str) -> float:
    return reaper._metrics.value(f"enclaved_reaper_{what}_total", kind=kind)


async def test_a_user_id_without_a_sandbox_is_free_again_after_two_looks(around: Around, reaper: Reaper) -> None:
    around.sandbox("box", 7, "c")
    around.uids = {7, 8}
    await reaper.look()
    assert (around.uids, counted(reaper, "found", "uid")) == ({7, 8}, 0)
    await reaper.look()
    assert (around.uids, counted(reaper, "found", "uid"), counted(reaper, "removed", "uid")) == ({7}, 1, 1)


async def test_what_has_an_owner_by_the_second_look_stays(around: Around, reaper: Reaper) -> None:
    around.containers = {"c": OURS.labels("box", 7)}
    around.uids = {7}
    directory = around.state_dir / "s" / "00000007"
    directory.mkdir(parents=True)
    await reaper.look()
    around.sandbox("box", 7, None)  # it is being made: nobody knows its container yet
    for _ in range(3):
        await reaper.look()
    assert (directory.exists(), around.uids, [*around.containers]) == (True, {7}, ["c"])


async def test_what_has_an_owner_at_the_moment_of_its_removal_stays(
    around: Around, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the removal the daemon goes on."""
    around.containers = {"a": OURS.labels("first", 7), "b": OURS.labels("box", 8)}
    await reaper.look()
    remove = around.remove

    async def meanwhile(container_id: str) -> None:
        around.sandbox("box", 8, "b")
        await remove(container_id)

    monkeypatch.setattr(around, "remove", meanwhile)
    await reaper.look()
    assert [*around.containers] == ["b"]


async def test_a_failed_removal_is_a_failed_look_keeps_nothing_else_and_is_tried_again(
    around: Around, reaper: Reaper
) -> None:
    around.containers = {"c": OURS.labels("gone", 7), "d": OURS.labels("gone too", 8)}
    around.stubborn = "c"
    for _ in range(3):
        await reaper.look()
    assert reaper._metrics.value("enclaved_reaper_runs_total", outcome="engine_refused") == 2
    assert (counted(reaper, "found", "container"), [*around.containers]) == (2, ["c"])
    around.stubborn = ""
    await reaper.look()
    assert (around.containers, counted(reaper, "removed", "container")) == ({}, 2)


async def test_nothing_is_removed_once_the_daemon_ends(around: Around, reaper: Reaper) -> None:
    around.containers = {"c": OURS.labels("gone", 7)}
    await reaper.look()
    around.is_closing = True
    await reaper.look()
    assert [*around.containers] == ["c"]


async def test_earlier_guests_go_once_no_sandbox_can_need_one(around: Around, reaper: Reaper) -> None:
    earlier = around.state_dir / "guest" / "guest-ffffffffffffffff.py"
    earlier.parent.mkdir()
    earlier.touch()
    around.sandbox("box", 7, "c")
    around.records[0].born = 0.0  # an earlier daemon made it
    for _ in range(3):
        await reaper.look()
    assert earlier.exists()
    around.records.clear()
    for _ in range(2):
        await reaper.look()
    assert not earlier.exists()
