"""A daemon dies at a named point while clients ask it for something, and another comes: nothing is lost, nothing stays.

Every point of `OPERATIONS` is one test. The clients try again as the contract says; afterwards the history of what they
heard must fit what the daemon shows, what the engine has, what is written down and what lies on the disk.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.service.crash.choice import chosen
from tests.service.crash.fuse import Point
from tests.service.crash.operations import OPERATIONS, Operation
from tests.service.crash.world import world

SHARE: Final = 8
"""One point of so many, but in a full run."""
CASES: Final = {
    f"{operation.name}: {point}": (operation, point) for operation in OPERATIONS for point in operation.points
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point in a full run, some of each operation in others."""
    if "point" in metafunc.fixturenames:
        names = chosen(metafunc.config, list(CASES), SHARE)
        metafunc.parametrize(("operation", "point"), [CASES[name] for name in names], ids=names)


async def test_a_daemon_that_dies_loses_nothing_and_leaves_nothing(operation: Operation, point: Point) -> None:
    async with world() as made:
        await made.up()
        await operation.prepare(made)
        await made.crashing(point, operation.work)
        await made.check()
        await made.end()


def test_every_point_has_a_name_of_its_own() -> None:
    assert len(CASES) == sum(len(operation.points) for operation in OPERATIONS)
