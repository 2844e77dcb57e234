"""User ids of sandboxes on engines that map them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from enclaved.agent import acl
from enclaved.core.uids import Uids
from enclaved.core.users import MAPPED, Users
from enclaved.errors import EngineUnavailable, InvalidRequest
from enclaved.model import EngineInfo, Mount
from enclaved.runtime.base import Runtime

PLAIN = EngineInfo("docker", available=True)
MAPPING = replace(PLAIN, maps_users=True, mapped_root=1_000_000)


class Engine:
    """Says what it is, or is away."""

    def __init__(self, info: EngineInfo | None) -> None:
        self.info_now = info
        self.asked = 0

    async def info(self) -> EngineInfo:
        self.asked += 1
        if self.info_now is None:
            raise EngineUnavailable("unix:///x", "away")
        return self.info_now


def users(engine: Engine, first: int = 1_900_000_000, count: int = 65_536) -> tuple[Users, Uids]:
    uids = Uids(first, count)
    return Users(cast("Runtime", engine), uids), uids


async def test_an_engine_that_maps_nothing_changes_nothing() -> None:
    engine = Engine(PLAIN)
    found, uids = users(engine)
    uid = uids.draw()
    await found.learn()
    await found.learn()
    assert (found.fitting(uid), uids.taken, engine.asked) == (uid, {uid}, 1)
    assert await found.guest_on_host(Path("/nowhere")) is None


async def test_ids_that_the_engine_lacks_are_drawn_anew() -> None:
    found, uids = users(Engine(MAPPING))
    early = uids.draw()
    await found.learn()
    fitting = found.fitting(early)
    assert fitting in MAPPED
    assert uids.taken == {fitting}
    assert uids.draw() in MAPPED
    assert await found.guest_on_host(Path("/nowhere")) == 1_000_000


async def test_configured_ids_that_the_engine_has_are_kept() -> None:
    found, uids = users(Engine(MAPPING), first=20_000, count=100)
    uid = uids.draw()
    await found.learn()
    assert found.fitting(uid) == uid
    assert uids.range == range(20_000, 20_100)


async def test_another_engine_is_asked_again() -> None:
    engine = Engine(MAPPING)
    found, uids = users(engine)
    await found.learn()
    engine.info_now = PLAIN
    found.forget()
    await found.learn()
    assert uids.range[0] == 1_900_000_000
    assert await found.guest_on_host(Path("/nowhere")) is None


async def test_while_the_engine_is_away_the_guest_of_before_is_let_in(tmp_path: Path) -> None:
    found, _ = users(Engine(None))
    assert await found.guest_on_host(tmp_path) is None
    acl.let_enter(tmp_path, 1_000_000)
    assert await found.guest_on_host(tmp_path) == 1_000_000


async def test_nobody_writes_as_an_owner_that_is_not_mapped() -> None:
    read, write = (Mount("/data", "/in", read_only=each) for each in (True, False))
    found, _ = users(Engine(PLAIN))
    await found.learn()
    found.check_mounts([read, write])
    found, _ = users(Engine(MAPPING))
    await found.learn()
    found.check_mounts([read])
    with pytest.raises(InvalidRequest, match="use mode 'ro'"):
        found.check_mounts([read, write])
