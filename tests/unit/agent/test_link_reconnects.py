"""What a connection that was lost leaves behind, and what goes on when the guest is back."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES
from enclaved.agent.reader import CREDIT_BYTES
from enclaved.errors import ExecutionNotFound, GuestUnavailable, SandboxLost
from tests.unit.agent.house import JOB, OPTIONS, House, finished, opened, ping, said, soon
from tests.unit.agent.scripted import HELLO, PATIENCE_S


async def test_after_a_reconnect_readers_go_on_where_they_were(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    said(guest, 0, b"abc")
    said(guest, 0, b"e", channel=2)
    for _ in range(2):
        await soon(reader.next())
    handle.acknowledge({1: 3})
    await guest.hear_of("acknowledge")
    await house.away(guest)

    guest = await house.guest("x")
    header, _ = await guest.hear()
    assert (header["type"], header["reader"], header["offsets"]) == ("subscribe", 1, {"1": 3, "2": 1})
    assert (await guest.hear())[0]["offsets"] == {"1": 3}  # the acknowledgement may have been lost
    guest.say("subscribed", execution="x", reader=1, offsets={"1": 3, "2": 1})
    said(guest, 3, b"def")
    assert (await soon(reader.next())).data == b"def"


async def test_credit_after_a_reconnect_counts_what_still_waits(house: House) -> None:
    guest = await house.guest()
    _, reader = await house.execution(guest)
    said(guest, 0, bytes(1000))
    said(guest, 1000, bytes(1000))
    await soon(reader.next())
    await ping(house, guest)
    await house.away(guest)
    guest = await house.guest("x")
    header, _ = await guest.hear()
    assert header["credit_bytes"] == CREDIT_BYTES - 1000 - CHUNK_OVERHEAD_BYTES


async def test_a_job_that_the_guest_does_not_have_is_sent_again(house: House) -> None:
    guest = await house.guest()
    handle, reader = house.link.start("x", JOB, OPTIONS)
    await house.away(guest)
    guest = await house.guest()
    header, payload = await guest.hear()
    assert (header["type"], header["execution"], payload) == ("run", "x", JOB.document)
    header, _ = await guest.hear()
    assert (header["type"], header["reader"]) == ("subscribe", 1)
    guest.say("subscribed", execution="x", reader=1, offsets={"1": 0, "2": 0})
    said(guest, 0, b"ran")
    assert (await soon(reader.next())).data == b"ran"
    assert handle.job is None


async def test_a_job_that_the_guest_has_is_not_sent_again(house: House) -> None:
    guest = await house.guest()
    await house.execution(guest)
    await house.away(guest)
    guest = await house.guest("x")
    assert (await guest.hear())[0]["type"] == "subscribe"
    await guest.silence()


async def test_an_execution_that_the_guest_has_lost_is_not_run_twice(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    said(guest, 0, b"begun")
    await soon(reader.next())
    await house.away(guest)
    guest = await house.guest()
    with pytest.raises(ExecutionNotFound):
        await soon(handle.finished)
    with pytest.raises(ExecutionNotFound):
        await soon(reader.next())
    await guest.silence()


async def test_what_was_said_while_the_guest_was_away_is_said_when_it_is_back(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest, stdin=True)
    await handle.input.write(b"abc", 0)
    await guest.hear_of("stdin")
    guest.say("stdin_taken", execution="x", offset=2)
    said(guest, 0, b"out")
    await soon(reader.next())
    await house.away(guest)
    await handle.input.write(b"def", 3)
    handle.acknowledge({1: 3})
    await handle.end_input()
    handle.cancel()

    guest = await house.guest("x")
    frames = [await guest.hear() for _ in range(6)]
    kinds = [header["type"] for header, _ in frames]
    assert kinds == ["watch_input", "subscribe", "acknowledge", "stdin", "end_of_input", "cancel"]
    assert (frames[3][0]["offset"], frames[3][1]) == (2, b"cdef")


async def test_an_end_that_came_while_the_daemon_was_away_is_heard(house: House) -> None:
    guest = await house.guest()
    handle, reader = await house.execution(guest)
    await house.away(guest)
    guest = await house.visitor()
    guest.say_bytes(encode_frame(HELLO))
    guest.say("holds", execution="x", state="ended")
    finished(guest)
    guest.say("ready")
    assert (await soon(handle.finished))["exit_code"] == 0
    await guest.hear_of("subscribe")
    said(guest, 0, b"whole")
    guest.say("end", execution="x", reader=1)
    assert (await soon(reader.next())).data == b"whole"
    assert await soon(reader.next()) is None


async def test_closing_ends_everything(place: Path) -> None:
    async with opened(place) as house:
        guest = await house.guest()
        handle, _ = await house.execution(guest)
        await house.link.close()
        with pytest.raises(SandboxLost, match="it was removed"):
            await soon(handle.finished)
        await guest.hung_up()
        assert not place.exists()


async def test_a_question_to_a_guest_that_never_comes_leaves_no_fault_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    asking = asyncio.create_task(house.link.ping(0.05))
    await asyncio.sleep(0)  # until it waits for the guest
    house.link.fail(SandboxLost("box", "it fell"))
    with pytest.raises(GuestUnavailable):
        await asking
    del asking
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_nobody_waits_for_goes_with_the_next_frame_or_soon(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    guest.say("finished", execution="x", exit_code=0)
    handle.let_go()
    house.link.send({"type": "cancel", "execution": "y"})
    assert [(await guest.hear())[0]["type"] for _ in range(2)] == ["may_go", "cancel"]
    handle.send("may_go")
    assert (await guest.hear())[0]["type"] == "may_go"


async def test_what_nobody_waits_for_is_not_said_to_the_next_guest(house: House) -> None:
    guest = await house.guest()
    handle, _ = await house.execution(guest)
    handle.let_go()
    await house.away(guest)
    again = await house.guest("x")
    house.link.send({"type": "cancel", "execution": "y"})
    assert (await again.hear_of("cancel"))[0]["execution"] == "y"
    await again.silence()


async def test_who_waits_for_a_guest_to_come_back_hears_at_once_that_it_will_not(house: House) -> None:
    asking = asyncio.create_task(house.link.ask("park", 10 * PATIENCE_S))
    await asyncio.sleep(0)  # it waits from now on
    house.link.fail(SandboxLost("box", "it burned"))
    with pytest.raises(SandboxLost, match="it burned"):
        await soon(asking)
