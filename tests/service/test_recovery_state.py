"""What daemons of one state directory refuse, and what they leave in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.core import leftovers
from enclaved.core.state import DATABASE_NAME
from enclaved.daemon import StartError
from tests.service.recovery import World, new_world, run


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(World) as world:
        yield world


async def test_a_damaged_database_is_a_clear_refusal_and_touches_nothing(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    path = world.state_dir / DATABASE_NAME
    whole = path.read_bytes()
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(StartError, match=r"state\.db.*damaged.*move the file away"):
        async with world.daemon():
            pass
    assert len(world.engine._containers) == 1
    path.write_bytes(whole)
    async with world.daemon() as second:
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_without_its_database_a_daemon_removes_what_is_left(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    (container_id,) = world.engine._containers
    (world.state_dir / DATABASE_NAME).unlink()
    async with world.daemon():
        await world.engine.has_not(container_id)


async def test_a_second_daemon_is_refused_and_disturbs_nothing(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        with pytest.raises(StartError, match="uses the state directory"):
            async with world.daemon():
                pass
        assert await run(first, "print(6 * 7)") == "42\n"


async def test_a_stop_that_does_not_keep_sandboxes_leaves_nothing_written_down(world: World) -> None:
    async with world.daemon(daemon__keep_sandboxes_on_stop="false") as first:
        await first.create()
        assert await run(first, "print(6 * 7)") == "42\n"
    assert world.engine._containers == {}
    async with world.daemon():
        pass
    async with world.state() as state:
        assert (state.sandboxes.load(), state.executions.load()) == ([], [])
