"""How long a silent guest is given: more where its programs use the processor time that it shares with them."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from enclaved.core.watching import BUSY_PATIENCE_S, PING_PATIENCE_S, Watching
from enclaved.errors import GuestUnavailable
from enclaved.model import ResourceUsage


def watching(*cpu_s: float | None) -> Watching:
    """One whose sandboxes have used so much at each look; ``None``: nobody can know."""
    runtime: Any = Mock()
    runtime.usage.side_effect = [None if each is None else ResourceUsage(cpu_user_s=each) for each in cpu_s]
    return Watching(runtime)


def silent(*, connected: bool = True) -> Any:
    return Mock(ping=AsyncMock(side_effect=GuestUnavailable("it is silent")), connected=connected)


async def asked(watch: Watching, link: Any) -> list[float]:
    """How long the guest was given, each time that it was asked."""
    with pytest.raises(GuestUnavailable):
        await watch._ping(link, "container")
    return [cast("float", call.args[0]) for call in link.ping.await_args_list]


async def test_a_silent_guest_whose_programs_are_busy_is_asked_again_and_for_longer() -> None:
    assert await asked(watching(10.0, 12.9), silent()) == [PING_PATIENCE_S, BUSY_PATIENCE_S]


@pytest.mark.parametrize("cpu_s", [(10.0, 10.0), (None, None)])
async def test_a_silent_guest_in_a_quiet_sandbox_is_given_up_at_once(cpu_s: tuple[float | None, ...]) -> None:
    assert await asked(watching(*cpu_s), silent()) == [PING_PATIENCE_S]


async def test_a_guest_that_is_gone_is_not_asked_again() -> None:
    assert await asked(watching(10.0, 12.9), silent(connected=False)) == [PING_PATIENCE_S]
