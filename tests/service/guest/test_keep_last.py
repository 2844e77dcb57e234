"""Executions that keep their last output: they never wait for a reader."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import JOURNAL_BYTES, KEEP_LAST_MIN_BYTES, SANDBOX_JOURNAL_BYTES
from tests.service.guest.wire import Run, WireGuest, wire_guest

MIB = 1024 * 1024


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


def check_gap_free_end(run: Run, total: int, *, reader: int = 1, most: int) -> bytes:
    """What a reader got of the end of a channel: the last bytes, without a gap in them."""
    chunks = [(header["offset"], data) for header, data in run.chunks if header["reader"] == reader]
    position = chunks[0][0]
    for offset, data in chunks:
        assert offset == position
        position += len(data)
    assert position == total
    assert 0 < total - chunks[0][0] <= most
    return b"".join(data for _, data in chunks)


async def test_a_flood_without_a_reader_goes_on_within_bounds_and_others_with_it(guest: WireGuest) -> None:
    total = 1024 * MIB
    before = guest.memory_bytes()
    flood = guest.shell(f"head -c {total} /dev/zero", follow=False, keep_last_bytes=MIB)
    peak = 0
    others = 0
    while flood.finished is None:
        other = guest.command("echo", "through")
        assert (await guest.end(other))["exit_code"] == 0
        assert other.output() == b"through\n"
        others += 1
        peak = max(peak, guest.memory_bytes())
    assert flood.finished["exit_code"] == 0
    assert flood.finished["bytes_total"] == {"1": total, "2": 0}
    assert flood.last("full") is None
    assert others > 1
    assert peak - before < 8 * MIB
    guest.follow(flood, 1)
    await guest.until(lambda: flood.last("end"))
    kept = check_gap_free_end(flood, total, most=MIB)
    assert len(kept) > 0.9 * MIB


async def test_what_was_acknowledged_is_still_there_for_a_late_reader(guest: WireGuest) -> None:
    run = guest.shell("echo first; read x; echo last", stdin=True, keep_last_bytes=MIB)
    await guest.written(run, b"first")
    guest.send("acknowledge", execution=run.name, offsets={"1": 6})
    guest.type(run, "\n", 0)
    await guest.end(run)
    guest.follow(run, 2)
    await guest.until(lambda: run.output(reader=2) == b"first\nlast\n")


async def test_a_reader_that_is_too_slow_sees_the_gap(guest: WireGuest) -> None:
    run = guest.shell("echo start; head -c 3000000 /dev/zero; echo end", keep_last_bytes=64 * 1024, follow=False)
    run.auto_credit = False
    guest.follow(run, 1, credit_bytes=1)
    await guest.until(lambda: run.finished)
    assert run.finished is not None
    assert run.finished["bytes_total"]["1"] == 3000010
    guest.send("credit", execution=run.name, reader=1, bytes=MIB)
    await guest.until(lambda: run.last("end"))
    assert run.output().startswith(b"start\n")
    assert run.output().endswith(b"\0end\n")
    gaps, position = 0, 0
    for header, data in run.chunks:
        gaps += header["offset"] > position
        assert header["offset"] >= position
        position = header["offset"] + len(data)
    assert (gaps, position) == (1, 3000010)


@pytest.mark.parametrize(("wanted", "kept"), [(1, KEEP_LAST_MIN_BYTES), (100 * MIB, JOURNAL_BYTES)])
async def test_how_much_is_kept_has_bounds(guest: WireGuest, wanted: int, kept: int) -> None:
    run = guest.shell(f"head -c {6 * MIB} /dev/zero", follow=False, keep_last_bytes=wanted)
    await guest.until(lambda: run.finished)
    guest.follow(run, 1)
    await guest.until(lambda: run.last("end"))
    assert len(check_gap_free_end(run, 6 * MIB, most=kept)) > kept * 0.9


async def test_where_the_sandbox_has_no_room_it_drops_its_own_oldest_output(guest: WireGuest) -> None:
    hogs = [guest.shell(f"head -c {6 * MIB} /dev/zero", follow=False) for _ in range(SANDBOX_JOURNAL_BYTES // MIB // 4)]
    for hog in hogs:
        await guest.until(lambda hog=hog: hog.last("full"))
    small = guest.shell(f"head -c {20 * MIB} /dev/zero; echo end", follow=False, keep_last_bytes=MIB)
    await guest.until(lambda: small.finished)
    assert small.finished is not None
    assert small.finished["exit_code"] == 0
    assert all(hog.finished is None for hog in hogs)
    guest.follow(small, 1)
    await guest.until(lambda: small.last("end"))
    assert check_gap_free_end(small, 20 * MIB + 4, most=MIB).endswith(b"\0end\n")
    for hog in hogs:  # nothing was taken from those that wait
        guest.follow(hog, 1)
        acknowledged = 0
        while hog.finished is None:
            seen = len(hog.output())
            if seen > acknowledged:
                guest.send("acknowledge", execution=hog.name, offsets={"1": seen})
                acknowledged = seen
            await guest.ping()
        await guest.end(hog)
        assert hog.output() == bytes(6 * MIB)


async def test_a_terminal_can_keep_its_last_output_too(guest: WireGuest) -> None:
    run = guest.shell(
        "head -c 3000000 /dev/zero | tr '\\0' x; echo", terminal=[24, 80], follow=False, keep_last_bytes=8192
    )
    await guest.until(lambda: run.finished)
    assert run.finished is not None
    assert run.finished["bytes_total"] == {"3": 3000002}
    guest.follow(run, 1)
    await guest.until(lambda: run.last("end"))
    assert check_gap_free_end(run, 3000002, most=8192).endswith(b"x\r\n")


async def test_an_output_limit_holds_for_all_that_was_written(guest: WireGuest) -> None:
    run = guest.shell("yes", follow=False, keep_last_bytes=MIB, output_limit_bytes=5 * MIB)
    await guest.until(lambda: run.finished)
    assert run.finished is not None
    assert (run.finished["cause"], run.finished["bytes_total"]["1"]) == ("output_limit", 5 * MIB)


async def test_a_second_reader_is_told_where_a_full_journal_stops_though_one_channel_is_silent(
    guest: WireGuest,
) -> None:
    """The first reader takes all; the second, slower one, has missed what a channel said that is silent since then."""
    run = guest.shell("echo error >&2; read x; head -c 8000000 /dev/zero", stdin=True)
    await guest.until(lambda: run.output(2) == b"error\n")
    guest.follow(run, 2, credit_bytes=0, c1=0, c2=0)
    guest.send("acknowledge", execution=run.name, offsets={"2": 6})
    await guest.until(lambda: (run.last("subscribed") or {}).get("offsets") == {"1": 0, "2": 6})
    guest.type(run, "\n", 0)
    await guest.until(lambda: run.last("full"))
    guest.send("credit", execution=run.name, reader=2, bytes=16 * MIB)
    await guest.until(lambda: len(run.output(reader=2)) == (run.last("full") or {})["offsets"]["1"])
    guest.send("cancel", execution=run.name)
    await guest.end(run)


async def test_a_reader_without_credit_learns_of_the_end_when_there_is_nothing_left_for_it(guest: WireGuest) -> None:
    run = guest.shell("echo text")
    await guest.end(run)
    guest.follow(run, 2, credit_bytes=0, c1=0)
    await guest.ping()
    assert not any(frame["type"] == "end" and frame["reader"] == 2 for frame in run.frames)
    guest.send("acknowledge", execution=run.name, offsets={"1": 5})
    await guest.until(lambda: any(frame["type"] == "end" and frame["reader"] == 2 for frame in run.frames))
    assert (run.last("subscribed") or {})["offsets"] == {"1": 5, "2": 0}
