"""`enclaved prune`: removes what daemons that are gone left, and nothing that somebody has or that is not proven."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from enclaved.core.ownership import LOCK_NAME, Ownership
from enclaved.core.prune import Prune, Pruned, Sort
from enclaved.core.state import DATABASE_NAME
from enclaved.errors import EngineRefused, EngineUnavailable
from enclaved.runtime.base import LABEL_HMAC, ContainerRecord, NetworkRecord, Runtime
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import daemon, settings_in

NOBODY = "4194305-1"
"""A process id beyond what Linux gives."""


@dataclass
class Engine:
    """Containers that are only names."""

    containers: dict[str, Mapping[str, str]] = field(default_factory=dict)
    networks: dict[str, Mapping[str, str]] = field(default_factory=dict)
    stubborn: str = ""
    away: bool = False

    async def list_networks(self) -> list[NetworkRecord]:
        return [NetworkRecord(name, labels) for name, labels in self.networks.items()]

    async def remove_network(self, network_id: str) -> bool:
        if network_id == self.stubborn:
            return False
        del self.networks[network_id]
        return True

    async def list_records(self) -> list[ContainerRecord]:
        if self.away:
            raise EngineUnavailable("unix:///nowhere", "no answer")
        return [ContainerRecord(name, labels, True) for name, labels in self.containers.items()]

    async def remove(self, container_id: str) -> None:
        if container_id == self.stubborn:
            raise EngineRefused("remove a container", "it does not want to")
        del self.containers[container_id]


class Place:
    """A state directory, and a base for embedded daemons, on an engine of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.engine = folder, Engine()
        self.state_dir, self.base = folder / "state", folder / "run"
        self.base.mkdir(mode=0o700)

    async def prune(self, *, dry_run: bool = False, everything: bool = False) -> Pruned:
        pruning = Prune(cast("Runtime", self.engine), dry_run=dry_run, everything=everything)
        return await pruning.run(self.state_dir, [self.base, self.base], [self.folder / "e.sock"])

    def made(self, state_dir: Path) -> Ownership:
        """A state directory that a daemon has used."""
        state_dir.mkdir(parents=True, mode=0o700)
        state_dir.parent.chmod(0o700)
        (state_dir / LOCK_NAME).write_text("17\n")
        return Ownership.of(state_dir)

    def embedded(self, name: str) -> Ownership:
        return self.made(self.base / name / "state")


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="pr", dir="/tmp"))
    yield Place(folder)
    shutil.rmtree(folder)


def names(things: Any) -> list[tuple[Sort, str]]:
    return [(thing.sort, Path(thing.name).name) for thing in things]


async def used_and_left(place: Place) -> None:
    """Runs a daemon that keeps its one sandbox for the next one."""
    settings = settings_in(place.folder, daemon__keep_sandboxes_on_stop="true")
    async with daemon(settings, runtime=SubprocessRuntime()) as running:
        await running.create()


async def test_where_no_daemon_ever_was_there_is_nothing(place: Place) -> None:
    assert await place.prune() == Pruned()


async def test_what_no_sandbox_has_goes_and_what_the_next_daemon_takes_up_stays(place: Place) -> None:
    await used_and_left(place)
    ours = Ownership.of(place.state_dir)
    (kept,) = (place.state_dir / "s").iterdir()
    (place.state_dir / "s" / "00000000" / "socket").mkdir(parents=True)
    (place.state_dir / ".key.4194305").touch()
    place.engine.containers = {
        "left": ours.labels("gone", 7),
        "live": ours.labels("box", 7),
        "imitation": {**ours.labels("gone", 7), LABEL_HMAC: "0" * 64},
        "foreign": Ownership(b"another").labels("theirs", 7),
    }
    place.engine.networks = {"net": ours.labels("", 0), "net-foreign": Ownership(b"another").labels("", 0)}
    found = await place.prune()
    assert names(found.removed) == [
        (Sort.CONTAINER, "left"),
        (Sort.DIRECTORY, "00000000"),
        (Sort.FILE, ".key.4194305"),
    ]
    assert sorted(thing.name for thing in found.kept) == ["foreign", "imitation", "live", "net"]
    assert place.engine.containers.keys() == {"live", "imitation", "foreign"}
    assert [*(place.state_dir / "s").iterdir()] == [kept]
    again = await place.prune()
    assert (again.removed, again.failed) == ([], [])


async def test_networks_go_where_no_sandbox_is_written_down(place: Place) -> None:
    ours, embedded = place.made(place.state_dir), place.embedded(NOBODY)
    imitation = {**ours.labels("", 0), LABEL_HMAC: "0" * 64}
    mine, stuck = ours.labels("", 0), {"stuck": ours.labels("", 0)}
    place.engine.networks = {"mine": mine, "theirs": embedded.labels("", 0), "imitation": imitation, **stuck}
    place.engine.stubborn = "stuck"
    told = await place.prune(dry_run=True)
    assert len(place.engine.networks) == 4
    found = await place.prune()
    networks = [name for sort, name in names(found.removed) if sort is Sort.NETWORK]
    assert networks == ["mine", "theirs"]
    assert [(thing.name, thing.reason) for thing in found.failed if thing.sort is Sort.NETWORK] == [
        ("stuck", "the container engine refused to remove a network: a container is in it")
    ]
    assert place.engine.networks.keys() == {"imitation", "stuck"}
    assert {*networks} < {name for sort, name in names(told.removed) if sort is Sort.NETWORK}


async def test_a_dry_run_says_the_same_and_changes_nothing(place: Place) -> None:
    await used_and_left(place)
    (place.state_dir / "s" / "00000000").mkdir()
    place.engine.containers = {"left": Ownership.of(place.state_dir).labels("gone", 7)}
    place.embedded(NOBODY)
    before = sorted(place.folder.rglob("*"))
    told = await place.prune(dry_run=True)
    assert (sorted(place.folder.rglob("*")), [*place.engine.containers]) == (before, ["left"])
    assert names((await place.prune()).removed) == names(told.removed)


async def test_all_means_also_what_the_next_daemon_would_take_up(place: Place) -> None:
    await used_and_left(place)
    place.engine.containers = {"live": Ownership.of(place.state_dir).labels("box", 7)}
    found = await place.prune(everything=True)
    sorts = [sort for sort, _ in names(found.removed)]
    assert sorts == [Sort.CONTAINER, Sort.DIRECTORY, Sort.FILE, Sort.DATABASE]
    assert place.engine.containers == {}
    assert not (place.state_dir / DATABASE_NAME).exists()
    async with daemon(settings_in(place.folder)) as running:  # the directory is as good as new
        await running.create()


async def test_a_directory_that_a_daemon_uses_is_passed_over(place: Place) -> None:
    async with daemon(settings_in(place.folder)) as running:
        await running.create()
        place.engine.containers = {"left": Ownership.of(place.state_dir).labels("gone", 7)}
        found = await place.prune(everything=True)
        assert (found.removed, found.failed) == ([], [])
        (kept,) = found.kept
        assert f"process {os.getpid()}" in kept.reason


async def test_embedded_daemons_that_are_gone_with_their_programs_are_cleared_away_whole(place: Place) -> None:
    gone = place.embedded(NOBODY)
    (place.base / f"{NOBODY}-ab12").mkdir(mode=0o700)  # its daemon never came so far as to make a state directory
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    here = place.embedded(f"{os.getpid()}-{started}")
    place.engine.containers = {"gone": gone.labels("a", 1), "here": here.labels("b", 1)}
    found = await place.prune()
    assert sorted(names(found.removed)) == [
        (Sort.CONTAINER, "gone"),
        (Sort.STATE, NOBODY),
        (Sort.STATE, f"{NOBODY}-ab12"),
    ]
    assert [*place.engine.containers] == ["here"]
    assert "may start its daemon again" in found.kept[0].reason


async def test_an_embedded_daemon_that_outlives_its_program_for_now_is_passed_over(place: Place) -> None:
    place.embedded(NOBODY)
    with (place.base / NOBODY / "state" / LOCK_NAME).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = await place.prune()
    assert (found.removed, len(found.kept)) == ([], 1)


async def test_a_key_stays_as_long_as_a_container_does_that_it_proves(place: Place) -> None:
    place.engine.containers = {"stubborn": place.embedded(NOBODY).labels("a", 1)}
    place.engine.stubborn = "stubborn"
    found = await place.prune()
    assert (names(found.failed), found.removed) == ([(Sort.CONTAINER, "stubborn")], [])
    place.engine.stubborn = ""
    assert names((await place.prune()).removed) == [(Sort.CONTAINER, "stubborn"), (Sort.STATE, NOBODY)]


async def test_a_base_that_others_could_have_changed_is_not_looked_at(place: Place) -> None:
    place.embedded(NOBODY)
    place.base.chmod(0o777)
    assert await place.prune() == Pruned()
    place.base.chmod(0o700)
    (place.base / NOBODY).rename(place.folder / "elsewhere")
    (place.base / NOBODY).symlink_to(place.folder / "elsewhere")
    assert await place.prune() == Pruned()


async def test_without_an_engine_nothing_is_changed(place: Place) -> None:
    place.embedded(NOBODY)
    place.engine.away = True
    with pytest.raises(EngineUnavailable):
        await place.prune()
    assert (place.base / NOBODY).exists()


async def test_a_damaged_database_keeps_everything(place: Place) -> None:
    await used_and_left(place)
    for name in (f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"):
        (place.state_dir / name).unlink(missing_ok=True)
    (place.state_dir / DATABASE_NAME).write_bytes(b"nonsense" * 1000)
    found = await place.prune()
    assert found.removed == []
    assert "--all" in found.kept[0].reason


async def test_a_socket_that_nobody_listens_on_goes_and_one_that_answers_stays(place: Place) -> None:
    path = place.folder / "e.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert (await place.prune()).removed == []
    assert names((await place.prune()).removed) == [(Sort.SOCKET, "e.sock")]


def test_the_command_says_what_it_does_and_fails_without_an_engine(place: Place) -> None:
    command = [sys.executable, "-P", "-m", "enclaved", "prune", "--json", "--state-dir", str(place.state_dir)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "ENCLAVED_ENGINE_URL": f"unix://{place.folder}/no-engine.sock",
        "ENCLAVED_CONFIG": "/dev/null",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("enclaved: ")
    assert "no-engine.sock" in done.stderr


async def test_a_directory_that_one_may_not_open_is_kept_and_the_others_are_pruned(place: Place) -> None:
    place.state_dir.mkdir()
    (place.state_dir / LOCK_NAME).symlink_to("elsewhere")  # as forbidden to root as another user's is to others
    gone = place.base / NOBODY / "state"
    gone.mkdir(parents=True)
    Ownership.of(gone)
    (gone / LOCK_NAME).touch()
    pruned = await place.prune()
    assert [(thing.sort, "prune it as the user to whom it belongs" in thing.reason) for thing in pruned.kept] == [
        (Sort.STATE, True)
    ]
    assert not gone.exists()


GONE = f"mse-doctor-{2**22 + 1}-abcdefg_"
HERE = f"mse-doctor-{os.getpid()}-abcdefg_"


async def test_what_doctors_left_that_were_killed_with_their_daemons_goes_whole_with_its_containers(
    place: Place,
) -> None:
    owners = {name: place.made(place.base / name / "d" / "s") for name in (GONE, HERE)}
    for name in (GONE, HERE):
        (place.base / name).chmod(0o711)
    place.engine.containers = {name: owner.labels("a", 1) for name, owner in owners.items()}
    pruning = Prune(cast("Runtime", place.engine), dry_run=True)
    would = await pruning.run(place.state_dir, [], [], place.base)
    assert names(would.removed) == [(Sort.CONTAINER, GONE), (Sort.STATE, GONE)]
    assert (place.base / GONE).exists()
    found = await Prune(cast("Runtime", place.engine), dry_run=False).run_doctors(place.base)
    assert names(found.removed) == names(would.removed)
    assert [*place.engine.containers] == [HERE]
    assert [path.name for path in place.base.iterdir()] == [HERE]


async def test_a_doctors_directory_stays_while_its_daemon_ends_or_a_container_does(place: Place) -> None:
    place.engine.containers = {"stubborn": place.made(place.base / GONE / "d" / "s").labels("a", 1)}
    with (place.base / GONE / "d" / "s" / LOCK_NAME).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (await Prune(cast("Runtime", place.engine), dry_run=False).run_doctors(place.base)).removed == []
    place.engine.stubborn = "stubborn"
    found = await Prune(cast("Runtime", place.engine), dry_run=False).run_doctors(place.base)
    assert (found.removed, names(found.failed)) == ([], [(Sort.CONTAINER, "stubborn")])
    assert (place.base / GONE).exists()


async def test_what_only_looks_like_a_doctors_directory_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mse-doctor-1x-abcdefgh", f"{GONE}x", f"x{GONE}"):
        (place.base / name).mkdir()
    (place.base / "target").mkdir()
    (place.base / GONE.replace("_", "l")).symlink_to(place.base / "target")
    (place.base / GONE.replace("_", "f")).touch()
    (place.base / GONE.replace("_", "w")).mkdir()
    (place.base / GONE.replace("_", "w")).chmod(0o777)
    before = sorted(place.base.iterdir())
    assert await Prune(cast("Runtime", place.engine), dry_run=False).run_doctors(place.base) == Pruned()
    assert sorted(place.base.iterdir()) == before
    (place.base / GONE).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert await Prune(cast("Runtime", place.engine), dry_run=False).run_doctors(place.base) == Pruned()
