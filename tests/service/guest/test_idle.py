"""The limit on the time without output and input."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.guest.wire import WireGuest, wire_guest


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


async def test_a_program_that_says_nothing_is_killed(guest: WireGuest) -> None:
    run = guest.shell("echo once; sleep 1000", idle_timeout_s=0.3)
    finished = await guest.end(run)
    assert (finished["cause"], finished["signal"]) == ("idle_timeout", 9)
    assert finished["phases"]["running_s"] >= 0.3
    assert run.output() == b"once\n"


async def test_a_program_that_keeps_writing_is_not(guest: WireGuest) -> None:
    run = guest.shell("for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.2; done", idle_timeout_s=1)
    finished = await guest.end(run)
    assert (finished["cause"], finished["exit_code"]) == (None, 0)
    assert finished["phases"]["running_s"] > 1.5


@pytest.mark.parametrize("terminal", [None, [24, 80]])
async def test_a_program_that_only_reads_is_not_idle_while_it_is_fed(
    guest: WireGuest, terminal: list[int] | None
) -> None:
    run = guest.shell("stty -echo 2> /dev/null; cat > /dev/null", stdin=True, terminal=terminal, idle_timeout_s=1)
    feeder = guest.shell("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done")
    fed = 0
    while feeder.finished is None:
        seen = len(feeder.chunks)
        if seen > fed:
            fed = guest.type(run, "\n" * (seen - fed), fed)
        await guest.until(lambda seen=seen: feeder.finished or len(feeder.chunks) > seen)
    assert run.finished is None
    finished = await guest.end(run)
    assert finished["cause"] == "idle_timeout"
    assert finished["phases"]["running_s"] > 2


async def test_the_time_stands_still_while_the_program_waits_for_a_reader(guest: WireGuest) -> None:
    run = guest.shell("head -c 6000000 /dev/zero; sleep 1000", follow=False, idle_timeout_s=0.4)
    await guest.until(lambda: run.last("full"))
    other = guest.shell("sleep 1.2")
    await guest.end(other)
    assert run.finished is None
    guest.follow(run, 1)
    acknowledged = 0
    while run.finished is None:
        seen = sum(len(data) for _, data in run.chunks)
        if seen > acknowledged:
            acknowledged = seen
            guest.send("acknowledge", execution=run.name, offsets={"1": seen})
        await guest.ping()
    assert run.finished["cause"] == "idle_timeout"
    assert run.finished["bytes_total"]["1"] == 6000000


async def test_a_context_is_interrupted_first(guest: WireGuest) -> None:
    await guest.end(guest.python("x = 'kept'", context="default"))
    run = guest.python("import time; time.sleep(1000)", context="default", idle_timeout_s=0.2)
    finished = await guest.end(run)
    assert (finished["cause"], finished["state_preserved"]) == ("idle_timeout", True)
    assert finished["exception"]["type"] == "KeyboardInterrupt"
    after = guest.python("print(x)", context="default")
    await guest.end(after)
    assert after.output() == b"kept\n"


async def test_time_in_the_queue_of_a_context_does_not_count(guest: WireGuest) -> None:
    first = guest.python("import time; time.sleep(.8)", context="default")
    second = guest.python("print('done')", context="default", idle_timeout_s=0.5)
    await guest.end(first)
    finished = await guest.end(second)
    assert (finished["cause"], second.output()) == (None, b"done\n")
