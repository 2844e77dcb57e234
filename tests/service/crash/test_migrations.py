"""A daemon dies between two statements, or files, of its first start or of a change of the database's version."""

from __future__ import annotations

import itertools
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import pytest

from enclaved.core.state import DATABASE_NAME
from enclaved.core.state.rows import encode
from enclaved.core.state.schema import APPLICATION_ID, MIGRATIONS
from tests.service.core_fakes import SPEC
from tests.service.crash.choice import chosen
from tests.service.crash.fuse import Point, statement
from tests.service.crash.look import rows
from tests.service.crash.operations import around
from tests.service.crash.world import World, world

NEWEST: Final = len(MIGRATIONS)
SHARE: Final = 8
"""One point of so many, but in a full run."""
_SANDBOX: Final = {
    "id": "old",
    "number": 1,
    "spec": encode(SPEC),
    "adjustments": "[]",
    "labels": json.dumps({"made": "before"}),
    "uid": 1_900_000_001,
    "directory": "/nonexistent",
    "container_id": None,
    "image": "null",
    "env": "{}",
    "state": "stopped",
    "state_reason": "stopped on request",
    "expires_monotonic_s": 1e9,
    "boot_id": "",
    "pool_id": "",
}


def points(version: int) -> list[Point]:
    """Every moment between two statements that lead from a version to the newest."""
    counted: dict[str, int] = {}
    found = around("sql.begin")
    for sql in itertools.chain.from_iterable(MIGRATIONS[version:]):
        seam = statement(sql)
        assert seam is not None, f"no name for {sql}"
        counted[seam] = counted.get(seam, 0) + 1
        found += [Point(seam, "before", counted[seam]), Point(seam, "after", counted[seam])]
    return [*found, *around("sql.user_version", "sql.commit")]


def write_version_1(world: World) -> None:
    """Makes the database of the first version, with a sandbox that is stopped."""
    world.state_dir.mkdir(mode=0o700)
    now = datetime.now(UTC).isoformat()
    sandbox = {**_SANDBOX, "created_at": now, "updated_at": now}
    names = ", ".join(sandbox)
    values = ", ".join(f":{name}" for name in sandbox)
    with closing(sqlite3.connect(world.state_dir / DATABASE_NAME)) as connection, connection:
        for sql in MIGRATIONS[0]:
            connection.execute(sql)
        connection.execute(f"INSERT INTO sandboxes ({names}) VALUES ({values})", sandbox)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point in a full run, some in others."""
    cases = FIRST if metafunc.function is test_a_daemon_that_dies_at_its_first_start_is_in_nobodys_way else points(1)
    metafunc.parametrize("point", chosen(metafunc.config, cases, SHARE), ids=str)


async def test_a_daemon_that_dies_while_it_migrates_loses_nothing(point: Point) -> None:
    async with world() as made:
        write_version_1(made)
        await made.crashing_at_the_start(point)
        (found,) = (await made.client.list()).values()
        assert (found.id, dict(found.labels)) == ("old", {"made": "before"})
        assert rows(made.state_dir, "PRAGMA user_version") == [{"user_version": NEWEST}]
        await made.end()


FILES = ("key.read", "file.key", "guest.install", "file.guest", "recovery.load")
FIRST = [*around(*FILES, "sql.journal_mode"), *points(0)]


async def test_a_daemon_that_dies_at_its_first_start_is_in_nobodys_way(point: Point) -> None:
    async with world() as made:
        await made.crashing_at_the_start(point)
        assert await made.client.list() == {}
        await made.end()
