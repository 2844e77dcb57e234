"""A daemon dies before, during and after calls of a real engine, and another comes: nothing is lost, nothing stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from tests.service.crash.choice import chosen
from tests.service.crash.fuse import Point
from tests.service.crash.operations import OPERATIONS, through
from tests.service.crash.world import World, world

SHARE: Final = 4
"""One point of so many, but in a full run."""
SEAMS: Final = {
    "create": ("engine.create", "engine.starting"),
    "delete": ("engine.remove",),
    "stop": ("engine.remove",),
    "start": ("engine.create", "engine.starting"),
    "pause": ("engine.pause",),
    "resume": ("engine.unpause",),
    "update": ("engine.update",),
    "recover": ("engine.list_records",),
}
CASES: Final = {
    f"{operation.name}: {point}": (operation.prepare, operation.work, point)
    for operation in OPERATIONS
    if operation.name in SEAMS
    for point in through(*SEAMS[operation.name])
    if (point.seam, point.moment) != ("engine.list_records", "during")
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point in a full run, some in others."""
    names = chosen(metafunc.config, list(CASES), SHARE)
    metafunc.parametrize(("prepare", "work", "point"), [CASES[name] for name in names], ids=names)


async def test_a_daemon_that_dies_at_the_engine_loses_nothing_and_leaves_nothing(
    default_image: str,
    prepare: Callable[[World], Awaitable[None]],
    work: Callable[[World], Awaitable[None]],
    point: Point,
) -> None:
    async with world(on_docker=True) as made:
        await made.up()
        await prepare(made)
        await made.crashing(point, work)
        await made.check()
        await made.end()
