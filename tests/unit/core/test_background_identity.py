"""Work that outlives its call is done as whoever it is for."""

from __future__ import annotations

from enclaved.core.background import Background
from enclaved.core.identity import acting_as, current
from enclaved.model import LOCAL, Identity

ANN = Identity("ann", "small")


async def test_background_work_is_done_as_who_started_it() -> None:
    background = Background()
    seen: list[Identity] = []

    async def work() -> None:
        seen.append(current())

    with acting_as(ANN):
        started = [background.spawn(work(), "a"), background.begin(work(), "b")]
        await background.finish(work(), "c")
    for task in started:
        await task
    await background.finish(work(), "d")
    assert seen == [ANN, ANN, ANN, LOCAL]
    await background.close(1)
