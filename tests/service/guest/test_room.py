"""The output of a sandbox takes no more than its bound, and what nobody has read is never given up for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import SANDBOX_JOURNAL_BYTES
from tests.service.guest.wire import Run, WireGuest, wire_guest

MIB = 1024 * 1024
PIECE = 120_000


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


async def read_all(guest: WireGuest, run: Run, size: int) -> None:
    """Follows an execution to its end, acknowledges all that comes, and checks it."""
    guest.follow(run, 1)
    acknowledged = 0
    while not run.last("end"):
        assert not run.last("unknown"), run.name
        seen = len(run.output())
        if seen > acknowledged:
            guest.send("acknowledge", execution=run.name, offsets={"1": seen})
            acknowledged = seen
        await guest.ping()
    assert run.output() == bytes(size)
    assert run.finished is not None
    assert run.finished["exit_code"] == 0
    run.chunks.clear()


async def settled(guest: WireGuest, runs: list[Run]) -> None:
    """Waits until each of them has ended or waits for room."""
    await guest.until(lambda: all(run.finished or run.last("full") for run in runs))


async def test_any_number_of_outputs_that_nobody_reads_wait_within_bounds_and_come_whole(guest: WireGuest) -> None:
    before = guest.memory_bytes()
    runs: list[Run] = []
    for _ in range(10):
        runs += [guest.command("head", "-c", str(PIECE), "/dev/zero", follow=False) for _ in range(25)]
        await settled(guest, runs)
    assert guest.memory_bytes() - before < SANDBOX_JOURNAL_BYTES + 8 * MIB
    other = guest.command("echo", "through")
    assert (await guest.end(other))["exit_code"] == 0
    for run in runs:
        await read_all(guest, run, PIECE)


async def test_programs_that_end_without_a_daemon_are_all_there_for_the_next_one(guest: WireGuest) -> None:
    runs = [guest.shell(f"read line; head -c {3 * MIB} /dev/zero", stdin=True, follow=False) for _ in range(8)]
    small = guest.shell("read line; echo precious", stdin=True, follow=False)
    for run in (small, *runs):
        guest.type(run, "\n", 0)
    await guest.drop()
    guest.follow(small, 1)
    await guest.until(lambda: small.last("end"))
    assert small.output() == b"precious\n"
    for run in runs:
        await read_all(guest, run, 3 * MIB)


async def test_what_nobody_needs_any_more_gives_way_and_its_end_stays_known(guest: WireGuest) -> None:
    kept = guest.shell(f"head -c {3 * MIB} /dev/zero", follow=False)
    await guest.until(lambda: kept.finished)
    old = []
    for _ in range(8):
        old.append(guest.shell(f"head -c {3 * MIB} /dev/zero", follow=False))
        await guest.until(lambda: old[-1].finished)  # the ones before have given way
        guest.send("may_go", execution=old[-1].name)
    guest.follow(old[0], 1)
    await guest.until(lambda: old[0].last("end"))
    assert old[0].output() == b""
    assert (old[0].last("subscribed") or {})["offsets"]["1"] == 3 * MIB
    await read_all(guest, kept, 3 * MIB)
    await guest.drop()
    held = {frame["execution"]: frame["state"] for frame in guest.greeting if frame["type"] == "holds"}
    assert held == dict.fromkeys([run.name for run in (kept, *old)], "ended")


async def test_nothing_is_let_go_of_that_still_runs(guest: WireGuest) -> None:
    run = guest.shell("echo first; read line; echo second", stdin=True, follow=False)
    guest.send("may_go", execution=run.name)
    guest.type(run, "\n", 0)
    await guest.until(lambda: run.finished)
    hogs = [guest.shell(f"head -c {6 * MIB} /dev/zero", follow=False) for _ in range(6)]
    await settled(guest, hogs)
    guest.follow(run, 1)
    await guest.until(lambda: run.last("end"))
    assert run.output() == b"first\nsecond\n"
    for hog in hogs:
        guest.send("cancel", execution=hog.name)


async def test_programs_that_nobody_reads_do_not_keep_another_from_going_on(guest: WireGuest) -> None:
    hogs = [guest.shell(f"head -c {6 * MIB} /dev/zero", follow=False) for _ in range(20)]
    await settled(guest, hogs)
    reader = guest.shell(f"head -c {MIB} /dev/zero", follow=False)
    await read_all(guest, reader, MIB)
    for hog in hogs:
        assert hog.finished is None
        guest.send("cancel", execution=hog.name)
    for hog in hogs:
        await guest.until(lambda hog=hog: hog.finished)
