"""Nothing is mounted out of a directory in which another sandbox could put something else in its place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from enclaved.core import mounting
from enclaved.core.host_paths import found
from enclaved.core.mounting import Mounting
from enclaved.core.record import SandboxRecord
from enclaved.errors import PolicyDenied
from enclaved.metrics import Metrics
from enclaved.model import EMBEDDED_ROLE, Mount
from tests.service.core_fakes import SPEC

SANDBOXES = range(2_000_000, 2_000_010)
OWNER = 1234


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with another one in it, both of one user."""
    inner = tmp_path.resolve() / "top" / "inner"
    inner.mkdir(parents=True)
    for each in (inner, inner.parent):
        os.chown(each, OWNER, OWNER)
    return inner.parent


async def record_of(name: str, path: Path, mode: str = "ro", *, role: str = "ci") -> SandboxRecord:
    mounts = (Mount(str(path), "/data", mode == "ro"),)
    return SandboxRecord(
        id=name,
        number=1,
        spec=replace(SPEC, mounts=mounts, role=role),
        adjustments=(),
        labels={},
        uid=SANDBOXES[0],
        directory=Path("/somewhere"),
        metrics=Metrics(version="0"),
        container_id="c",
        born=asyncio.get_running_loop().time(),
    )


def begin(known: Mounting, *records: SandboxRecord) -> None:
    for record in records:
        with found(record.spec.mounts) as places:
            known.user_of(record, places, SANDBOXES)


async def settle(known: Mounting, monkeypatch: pytest.MonkeyPatch, record: SandboxRecord) -> None:
    async def looks_good(record: SandboxRecord, link: object, places: Sequence[object]) -> None:
        pass

    monkeypatch.setattr(mounting, "look_again", looks_good)
    await known.look_again(record, Mock(), ())


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_nothing_is_mounted_out_of_a_directory_to_which_another_sandbox_can_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    known = Mounting()
    writer, reader = await record_of("writer", folder, "rw"), await record_of("reader", folder / "inner", mode)
    begin(known, writer)
    await settle(known, monkeypatch, writer)
    with pytest.raises(PolicyDenied, match="to which sandbox 'writer' can write") as caught:
        begin(known, reader)
    assert caught.value.rule == "volumes"
    known.leave(writer)
    begin(known, reader)


async def test_no_sandbox_may_come_to_write_around_what_another_is_about_to_mount(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Mounting()
    writer, reader = await record_of("writer", folder, "rw"), await record_of("reader", folder / "inner")
    begin(known, reader)
    with pytest.raises(PolicyDenied, match="of sandbox 'reader'"):
        begin(known, writer)
    # What is mounted stays what it is, whoever writes around it afterwards.
    await settle(known, monkeypatch, reader)
    begin(known, writer)


async def test_who_can_write_is_known_also_after_a_restart_of_the_daemon(folder: Path) -> None:
    known = Mounting()
    known.take_up(await record_of("writer", folder, "rw"))
    known.take_up(await record_of("gone", folder / "nothing", "rw"))
    with pytest.raises(PolicyDenied, match="to which sandbox 'writer' can write"):
        begin(known, await record_of("reader", folder / "inner"))


async def test_directories_that_are_read_shared_or_apart_are_in_nobodys_way(folder: Path) -> None:
    known = Mounting()
    other = folder / "other"
    other.mkdir()
    os.chown(other, OWNER, OWNER)
    begin(known, await record_of("one", folder), await record_of("two", folder / "inner", "rw"))
    begin(known, await record_of("three", folder / "inner", "rw"), await record_of("four", other))


async def test_who_runs_as_an_owner_keeps_a_number_of_its_own_for_a_group(folder: Path) -> None:
    record = await record_of("writer", folder, "rw")
    with found(record.spec.mounts) as places:
        assert Mounting().user_of(record, places, SANDBOXES) == OWNER
    record.uid = OWNER
    assert record.gid == SANDBOXES[0]
    again = SandboxRecord.of(record.row(), Metrics(version="0"))
    assert (again.uid, again.gid) == (OWNER, SANDBOXES[0])
    # A row of a daemon that had no such number: its programs have the owner's.
    assert SandboxRecord.of(replace(record.row(), gid=0), Metrics(version="0")).gid == OWNER


async def test_the_program_that_embeds_its_daemon_mounts_what_it_likes(folder: Path) -> None:
    known = Mounting()
    begin(known, await record_of("writer", folder, "rw", role=EMBEDDED_ROLE))
    begin(known, await record_of("reader", folder / "inner", role=EMBEDDED_ROLE))
