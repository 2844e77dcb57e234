"""The reaper removes what nobody owns, and nothing that is being made, used or removed by somebody else."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core.ownership import Ownership
from enclaved.errors import EngineUnavailable
from enclaved.model.leftovers import LeftoverKind
from enclaved.runtime.base import LABEL_HMAC, ContainerPlan, ContainerRecord, NetworkRecord
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory

LEFT, IMITATED, FOREIGN = "1" * 64, "2" * 64, "3" * 64
OFTEN_S = "0.01"
ASK_AGAIN_S = 0.01


class Engine(SubprocessRuntime):
    """Has containers besides those of the daemon, and holds a creation up once its container is there."""

    def __init__(self) -> None:
        super().__init__()
        self.others: dict[str, dict[str, str]] = {}
        self.networks: dict[str, dict[str, str]] = {}
        self.removed: list[str] = []
        self.made = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.looks = 0
        self.looked = asyncio.Event()
        self.away = False

    async def create(self, plan: ContainerPlan) -> str:
        container_id = await super().create(plan)
        self.made.set()
        await self.may_go_on.wait()
        return container_id

    async def list_records(self) -> list[ContainerRecord]:
        self.looks += 1
        self.looked.set()
        if self.away:
            raise EngineUnavailable("unix:///nowhere", "no answer")
        others = [ContainerRecord(name, labels, True) for name, labels in self.others.items()]
        return [*others, *await super().list_records()]

    async def remove(self, container_id: str) -> None:
        self.removed.append(container_id)
        if self.others.pop(container_id, None) is None:
            await super().remove(container_id)

    async def list_networks(self) -> list[NetworkRecord]:
        return [NetworkRecord(name, labels) for name, labels in self.networks.items()]

    async def remove_network(self, network_id: str) -> bool:
        del self.networks[network_id]
        return True

    async def look_again(self, times: int = 4) -> None:
        """Waits until the daemon has looked at the containers so often."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(times):
                self.looked.clear()
                await self.looked.wait()


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


async def counts(running: Running, name: str) -> dict[str, int]:
    """A counter of the reaper, by kind or outcome."""
    _, text = await running.get("/metrics")
    return {
        label: int(float(n)) for label, n in re.findall(rf'^{name}_total{{\w+="(\w+)"}} (\S+)$', text, re.MULTILINE)
    }


async def until(running: Running, name: str, **wanted: int) -> dict[str, int]:
    """Waits until a counter has at least these numbers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            seen = await counts(running, name)
            if all(seen.get(label, 0) >= number for label, number in wanted.items()):
                return seen
            await asyncio.sleep(ASK_AGAIN_S)


def plant_rows(database: Path) -> None:
    """Writes a sandbox and an execution down that nobody knows, as copies of those there are."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (("sandboxes", "id"), ("executions", "id")):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ", ".join("'stray'" if name == column else name for name in names)
            connection.execute(f"INSERT INTO {table} SELECT {values} FROM {table} LIMIT 1")


async def test_what_nobody_owns_is_removed_and_what_is_not_ours_stays(folder: Path) -> None:
    engine = Engine()
    state_dir = folder / "state"
    async with daemon(settings_in(folder, daemon__reap_every_s=OFTEN_S), runtime=engine) as running:
        await running.create()
        await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
        ours = Ownership.of(state_dir)
        left, keep = state_dir / "s" / "0badcafe", state_dir / "s" / "notes"
        (left / "socket").mkdir(parents=True)
        keep.mkdir()
        half, mine = state_dir / ".key.4194305", state_dir / "readme"
        half.touch()
        mine.touch()
        plant_rows(state_dir / "state.db")
        engine.others[LEFT] = ours.labels("gone", 7)
        engine.networks["theirs"] = Ownership(b"another").labels("", 0)
        engine.networks["left"] = ours.labels("", 0)
        engine.others[IMITATED] = {**ours.labels("gone", 7), LABEL_HMAC: "0" * 64}
        engine.others[FOREIGN] = Ownership(b"another").labels("theirs", 7)
        planted = {kind.value: 1 for kind in LeftoverKind if kind is not LeftoverKind.UID}
        removed = await until(running, "enclaved_reaper_removed", **planted)
        await engine.look_again()
        assert removed == await counts(running, "enclaved_reaper_removed") == {**planted, "uid": 0}
        assert await counts(running, "enclaved_reaper_found") == removed
        assert engine.others.keys() == {IMITATED, FOREIGN}
        assert engine.networks.keys() == {"theirs"}
        assert (left.exists(), half.exists(), keep.exists(), mine.exists()) == (False, False, True, True)
        answer = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(2)")))
        assert answer.stdout == b"2\n"


async def test_a_sandbox_that_is_being_made_is_left_alone_however_long_that_takes(folder: Path) -> None:
    """Its container and its directory are there, and only the engine knows the container's id."""
    engine = Engine()
    async with daemon(settings_in(folder, daemon__reap_every_s=OFTEN_S), runtime=engine) as running:
        await engine.look_again(1)
        engine.may_go_on.clear()
        creating = asyncio.create_task(running.create())
        await engine.made.wait()
        await engine.look_again()
        engine.may_go_on.set()
        await creating
        await engine.look_again()
        assert engine.removed == []
        answer = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
        assert answer.stdout == b"1\n"


async def test_looks_without_a_pause_take_nothing_from_sandboxes_that_come_and_go(folder: Path) -> None:
    engine = Engine()
    async with daemon(settings_in(folder, daemon__reap_every_s="0.0001"), runtime=engine) as running:
        await engine.look_again(1)

        async def comes_and_goes(name: str) -> None:
            for _ in range(4):
                await running.create(name)
                answer = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)", name)))
                assert answer.stdout == b"1\n"
                await running.sandbox_stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id=name))

        before = engine.looks
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(comes_and_goes(f"box-{number}"))
        assert engine.looks - before > 10
        await engine.look_again()
        assert set((await counts(running, "enclaved_reaper_removed")).values()) == {0}
        assert len(engine.removed) == 24


async def test_an_engine_that_is_away_is_a_failed_look_and_the_next_ones_go_on(folder: Path) -> None:
    engine = Engine()
    async with daemon(settings_in(folder, daemon__reap_every_s=OFTEN_S), runtime=engine) as running:
        await until(running, "enclaved_reaper_runs", ok=2)
        engine.away = True
        await until(running, "enclaved_reaper_runs", engine_unavailable=2)
        engine.away = False
        engine.others[LEFT] = Ownership.of(folder / "state").labels("gone", 7)
        await until(running, "enclaved_reaper_removed", container=1)


async def test_a_half_deleted_sandbox_of_an_earlier_daemon_is_not_taken_for_a_stray_while_the_engine_is_away(
    folder: Path,
) -> None:
    """Its row is what the next daemon has of it: that goes when its container is gone."""
    engine = Engine()
    async with daemon(settings_in(folder, daemon__keep_sandboxes_on_stop="true"), runtime=SubprocessRuntime()) as first:
        await first.create()
    database = folder / "state" / "state.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE sandboxes SET state = 'stopping'")
    engine.away = True
    async with daemon(settings_in(folder, daemon__reap_every_s=OFTEN_S), runtime=engine):
        await engine.look_again(1)
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT count(*) FROM sandboxes").fetchone() == (1,)
