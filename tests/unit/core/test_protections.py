"""The gate that holds sandboxes back until a canary has shown that they are isolated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from enclaved.core import protections
from enclaved.core.background import Background
from enclaved.core.protections import Protections
from enclaved.errors import EngineRefused, EngineUnavailable, ImageNotFound
from enclaved.metrics import Metrics
from enclaved.model import Protection, ProtectionState

GOOD = (Protection("profile", ProtectionState.EFFECTIVE), Protection("devices", ProtectionState.WAIVED, "why"))
BAD = (Protection("profile", ProtectionState.EFFECTIVE), Protection("devices", ProtectionState.FAILED, "has kmsg"))

Look = Callable[[str], Awaitable[tuple[Protection, ...]]]


class Canaries:
    """Canaries that find what a test wants."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.finds: list[tuple[Protection, ...] | Exception] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.on_look: Callable[[], object] = lambda: None

    async def look(self, image: str) -> tuple[Protection, ...]:
        self.images.append(image)
        self.on_look()
        await self.may_go_on.wait()
        found = self.finds.pop(0) if self.finds else GOOD
        if isinstance(found, Exception):
            raise found
        return found

    async def close(self, deadline_s: float) -> None:
        """Nothing is left."""


@asynccontextmanager
async def gate(image: str = "default") -> AsyncIterator[tuple[Protections, Canaries, list[bool]]]:
    background, canaries, told = Background(), Canaries(), []
    made = Protections(background=background, metrics=Metrics(version="0"), canary=canaries, image=image)

    async def changed(available: bool) -> None:
        told.append(available)

    made.changed = changed
    try:
        yield made, canaries, told
    finally:
        await made.close(5)
        await background.close(5)


async def test_without_a_canary_nothing_is_held_back():
    made = Protections(background=Background(), metrics=Metrics(version="0"))
    made.expect("i")
    await made.wait_passed("i")
    assert made.states == ()


async def test_the_engines_arrival_begins_a_look_for_which_everybody_waits():
    async with gate() as (made, canaries, told):
        canaries.may_go_on.clear()
        await made.engine_seen(True)
        waiting = [asyncio.create_task(made.wait_passed("other")) for _ in range(5)]
        await asyncio.sleep(0)
        assert (told, any(task.done() for task in waiting)) == ([], False)
        canaries.may_go_on.set()
        await asyncio.gather(*waiting)
        assert (canaries.images, told) == (["default"], [True])
        assert made.states == GOOD


async def test_what_fails_first_refuses_to_serve_and_names_the_way_out():
    async with gate() as (made, canaries, _told):
        canaries.finds = [BAD]
        await made.engine_seen(True)
        await made.settled()
        assert made.refused.is_set()
        assert "devices: has kmsg" in made.trouble
        assert 'protections = ["devices"] in [waive]' in made.trouble
        with pytest.raises(EngineRefused, match="has kmsg"):
            await made.wait_passed("i")
        assert canaries.images == ["default"]


async def test_what_fails_later_holds_back_and_a_new_engine_is_looked_at_again():
    async with gate() as (made, canaries, told):
        canaries.finds = [GOOD, BAD]
        await made.engine_seen(True)
        await made.wait_passed("i")
        await made.engine_seen(False)
        await made.engine_seen(True)
        with pytest.raises(EngineRefused):
            await made.wait_passed("i")
        assert not made.refused.is_set()
        made.doubt()
        await made.wait_passed("i")
        assert told == [True, False, False, True]


async def test_an_engine_that_is_replaced_during_a_look_is_looked_at_again():
    async with gate() as (made, canaries, told):
        canaries.finds = [GOOD, BAD]
        canaries.may_go_on.clear()
        await made.engine_seen(True)
        waiting = asyncio.create_task(made.wait_passed("i"))
        await asyncio.sleep(0)
        made.doubt()
        canaries.may_go_on.set()
        with pytest.raises(EngineRefused, match="has kmsg"):
            await waiting
        assert (canaries.images, told) == (["default", "default"], [False])


async def test_the_first_word_of_the_engine_is_no_reason_to_look_at_it_twice():
    async with gate() as (made, canaries, _told):
        canaries.may_go_on.clear()
        made.expect("i")
        waiting = asyncio.create_task(made.wait_passed("i"))
        await asyncio.sleep(0)
        await made.engine_seen(True)
        canaries.may_go_on.set()
        await waiting
        assert canaries.images == ["i"]


async def test_an_engine_that_is_replaced_during_every_look_is_no_verdict():
    async with gate() as (made, canaries, _told):
        canaries.on_look = made.doubt
        with pytest.raises(EngineUnavailable, match="replaced during each of 3 looks"):
            await made.wait_passed("i")
        assert {one.state for one in made.states} == {ProtectionState.UNKNOWN}


async def test_an_image_that_is_not_there_is_no_verdict_and_the_next_sandboxs_is_taken():
    async with gate() as (made, canaries, told):
        canaries.finds = [ImageNotFound("default", "no such image")]
        await made.engine_seen(True)
        await made.settled()
        assert (made.refused.is_set(), told) == (False, [False])
        assert {one.state for one in made.states} == {ProtectionState.UNKNOWN}
        assert [one.detail for one in made.states if one.detail] == [
            "not looked at: image 'default' not found: no such image"
        ]
        await made.wait_passed("another")
        assert canaries.images == ["default", "another"]


@pytest.mark.parametrize("trouble", [ImageNotFound("default", "no such image"), EngineUnavailable("engine", "slow")])
async def test_what_could_not_be_looked_at_is_looked_at_again_though_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception
):
    monkeypatch.setattr(protections, "AGAIN_AFTER_S", 0.01)
    async with gate() as (made, canaries, _told):
        works = asyncio.Event()

        async def changed(available: bool) -> None:
            if available:
                works.set()

        made.changed = changed
        canaries.finds = [trouble, trouble]
        await made.engine_seen(True)
        await asyncio.wait_for(works.wait(), 10)
        assert (canaries.images, made.states) == (["default"] * 3, GOOD)


async def test_what_an_engine_before_this_one_showed_is_not_shown_of_this_one():
    async with gate() as (made, canaries, _told):
        await made.engine_seen(True)
        await made.wait_passed("i")
        await made.engine_seen(False)
        canaries.finds = [EngineUnavailable("engine", "away")]
        await made.engine_seen(True)
        with pytest.raises(EngineUnavailable):
            await made._begin("i")
        assert {one.state for one in made.states} == {ProtectionState.UNKNOWN}


async def test_an_engine_that_goes_meanwhile_is_no_verdict():
    async with gate() as (made, canaries, _told):
        canaries.finds = [EngineUnavailable("engine", "away")]
        with pytest.raises(EngineUnavailable):
            await made.wait_passed("i")
        assert not made.refused.is_set()
        await made.wait_passed("i")


async def test_a_canary_that_cannot_be_made_twice_is_a_failure_that_cannot_be_waived():
    async with gate() as (made, canaries, _told):
        canaries.finds = [EngineRefused("start a container", "no"), EngineRefused("start a container", "still no")]
        await made.engine_seen(True)
        await made.settled()
        assert made.refused.is_set()
        assert "still no" in made.trouble
        assert "waive" not in made.trouble


async def test_one_that_waits_for_its_first_sandbox_looks_beside_it():
    async with gate("") as (made, canaries, told):
        await made.engine_seen(True)
        assert (canaries.images, told) == ([], [True])
        made.expect("first")
        await made.wait_passed("first")
        made.expect("second")
        await made.wait_passed("second")
        assert canaries.images == ["first"]
