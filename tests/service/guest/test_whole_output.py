"""Readers that have no use for a part of the output: they get it at the end, unless it is much or somebody looks on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES
from tests.service.guest.wire import CREDIT_BYTES, Run, WireGuest, wire_guest

WHOLE = {"reader": 1, "offsets": {}, "credit_bytes": CREDIT_BYTES, "whole": True}


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


def whole(guest: WireGuest, command: str) -> Run:
    return guest.shell(command, stdin=True, follow=False, subscribe=WHOLE)


async def test_output_comes_with_the_end(guest: WireGuest) -> None:
    run = whole(guest, "echo one; read line; echo two >&2")
    guest.type(run, "go\n", 0)
    await guest.end(run)
    assert (run.output(1), run.output(2)) == (b"one\n", b"two\n")
    of_run = [frame["type"] for frame in guest.greeting if frame.get("execution") == run.name]
    assert [kind for kind in of_run if kind != "stdin_taken"] == ["finished", "output", "output", "end"]


async def test_much_output_comes_while_the_program_runs(guest: WireGuest) -> None:
    size = 8 * MAX_PAYLOAD_BYTES
    run = whole(guest, f"head -c {size} /dev/zero; read line; echo end")
    await guest.until(lambda: len(run.output()) == size)
    assert run.finished is None
    guest.type(run, "go\n", 0)
    await guest.end(run)
    assert run.output() == bytes(size) + b"end\n"


async def test_output_comes_at_once_while_somebody_else_follows(guest: WireGuest) -> None:
    run = whole(guest, "echo one; read line; echo two")
    guest.follow(run, 2)
    await guest.until(lambda: run.output(reader=2) == b"one\n" == run.output(reader=1))
    guest.send("acknowledge", execution=run.name, offsets={"1": 4})
    guest.send("unsubscribe", execution=run.name, reader=2)
    guest.type(run, "go\n", 0)
    await guest.end(run)
    assert run.output(reader=1) == b"one\ntwo\n"


async def test_output_comes_where_the_program_waits_for_room(guest: WireGuest) -> None:
    run = whole(guest, "cat /dev/zero")
    await guest.until(lambda: (full := run.last("full")) and len(run.output()) == full["offsets"]["1"])
    assert run.finished is None
    guest.send("cancel", execution=run.name)
    await guest.end(run)
