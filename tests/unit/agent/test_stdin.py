"""Input on its way to a guest."""

from __future__ import annotations

import pytest

from enclaved.agent.stdin import Input
from enclaved.errors import InvalidRequest


async def test_input_that_comes_after_the_end_is_ignored_wherever_it_would_belong() -> None:
    """A client that comes back to an execution that has ended sends again what it sent before."""
    sent: list[tuple[int, bytes]] = []
    found = Input(lambda offset, data: sent.append((offset, data)), known=True)
    with pytest.raises(InvalidRequest, match="gap"):
        await found.write(b"two", 3)
    found.close()
    await found.write(b"one", 0)
    await found.write(b"two", 3)
    assert sent == []


async def test_what_the_program_has_taken_of_an_earlier_daemons_input_is_no_nonsense_after_its_end() -> None:
    """It ended before anybody here knew what was sent; a client that says again that no more comes is answered so."""
    found = Input(lambda offset, data: None, known=False)
    found.close()
    found.on_taken(390)
    found.take_up(390, True)
    found.on_taken(390)
