"""What a daemon asks guests about contexts, and what it believes of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from enclaved.core import contexts
from enclaved.errors import (
    ContextNotFound,
    EnclaveError,
    GuestUnavailable,
    InvalidRequest,
    LimitReached,
    SandboxLost,
    SandboxNotFound,
    WrongState,
)
from enclaved.model import SandboxState
from tests.unit.agent.scripted import FakeGuest
from tests.unit.core.scripted import World, soon

ONE = {"name": "analysis", "calls": 3, "execution": "run:5f", "queued": 2, "alive": True, "age_s": 4.5}


async def answered(guest: FakeGuest, call: Coroutine[Any, Any, Any], kind: str, **fields: Any) -> Any:
    """What a call makes of an answer."""
    calling = asyncio.create_task(call)
    header, _ = await guest.hear_of(kind)
    guest.say(fields.pop("type", "context"), number=header["number"], **fields)
    return await soon(calling)


async def test_a_context_is_opened_listed_reset_and_closed(world: World) -> None:
    guest = await world.guest()
    info = await answered(guest, world.contexts.open("box", "analysis"), "open_context", **ONE)
    assert (info.name, info.sandbox_id, info.calls, info.execution_id, info.queued, info.alive) == (
        "analysis",
        "box",
        3,
        "run",
        2,
        True,
    )
    listed = await answered(
        guest, world.contexts.list("box"), "list_contexts", type="contexts", contexts=[{**ONE, "name": "b"}, ONE]
    )
    assert [context.name for context in listed] == ["analysis", "b"]
    assert (await answered(guest, world.contexts.reset("box", "analysis"), "reset_context", **ONE)).name == "analysis"
    assert await answered(guest, world.contexts.close("box", "analysis"), "close_context", **ONE) is None


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("not_found", ContextNotFound, "ListContexts"),
        ("full", LimitReached, "close one"),
        ("no_process", LimitReached, "16 are open"),
        ("weather", GuestUnavailable, "nonsense"),
        (None, GuestUnavailable, "nonsense"),
    ],
)
async def test_a_refusal_says_why(world: World, code: str | None, error: type[EnclaveError], text: str) -> None:
    guest = await world.guest()
    message = "16 are open; close one of them first"
    with pytest.raises(error, match=text):
        await answered(
            guest,
            world.contexts.reset("box", "analysis"),
            "reset_context",
            type="context_refused",
            code=code,
            message=message,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 5},
        {"name": "other"},
        {"name": "../x"},
        {"calls": -1},
        {"calls": True},
        {"execution": None},
        {"queued": "many"},
        {"alive": "yes"},
        {"age_s": -1},
        {"age_s": float("nan")},
    ],
)
async def test_an_answer_that_makes_no_sense_is_not_believed(world: World, wrong: dict[str, Any]) -> None:
    guest = await world.guest()
    with pytest.raises(GuestUnavailable, match="nonsense"):
        await answered(guest, world.contexts.open("box", "analysis"), "open_context", **{**ONE, **wrong})


@pytest.mark.parametrize("wrong", [None, "x", [1], [{}]])
async def test_a_list_that_makes_no_sense_is_not_believed(world: World, wrong: object) -> None:
    guest = await world.guest()
    with pytest.raises(GuestUnavailable, match="nonsense"):
        await answered(guest, world.contexts.list("box"), "list_contexts", type="contexts", contexts=wrong)


async def test_a_guest_that_does_not_answer_is_waited_for_so_long_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "CHANGE_DEADLINE_S", 0.01)
    await world.guest()
    with pytest.raises(GuestUnavailable, match="does not answer"):
        await world.contexts.open("box", "analysis")


async def test_a_sandbox_that_is_lost_meanwhile_is_told(world: World) -> None:
    guest = await world.guest()
    opening = asyncio.create_task(world.contexts.open("box", "analysis"))
    await guest.hear_of("open_context")
    world.link.fail(SandboxLost("box", "it was stopped"))
    with pytest.raises(SandboxLost):
        await soon(opening)
    with pytest.raises(SandboxLost):
        await soon(world.contexts.open("box", "analysis"))


async def test_names_and_sandboxes_are_checked_before_a_guest_is_asked(world: World) -> None:
    guest = await world.guest()
    with pytest.raises(InvalidRequest, match="must match"):
        await world.contexts.open("box", "a b")
    with pytest.raises(SandboxNotFound):
        await world.contexts.close("none", "a")
    world.record.enter(SandboxState.STOPPED, "stopped on request")
    with pytest.raises(WrongState):
        await world.contexts.list("box")
    await guest.silence()
