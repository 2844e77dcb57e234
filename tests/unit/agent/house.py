"""A link to guests that say whatever a test wants."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from enclaved.agent.handle import Handle, RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.link import SOCKET_NAME, GuestLink
from enclaved.agent.reader import OutputReader
from tests.unit.agent.scripted import PATIENCE_S, FakeGuest

OPTIONS = RunOptions(timeout_s=5)
JOB = WireJob(b'{"kind":"command"}', None)


class House:
    """A link and the guests that come to it."""

    def __init__(self, directory: Path) -> None:
        self.link = GuestLink("box", directory, group_id=os.getgid(), guest_uids={os.getuid()})
        self.guests: list[FakeGuest] = []

    async def visitor(self) -> FakeGuest:
        """Somebody who has connected and said nothing."""
        guest = FakeGuest(*await asyncio.open_unix_connection(self.link.directory / SOCKET_NAME))
        self.guests.append(guest)
        return guest

    async def guest(self, *holds: str) -> FakeGuest:
        """A guest that was let in."""
        guest = await self.visitor()
        guest.greet(*holds)
        async with asyncio.timeout(PATIENCE_S):
            await self.link.wait_connected()
        return guest

    async def away(self, guest: FakeGuest) -> None:
        """Lets a guest leave, and waits until the link has noticed."""
        await guest.leave()
        async with asyncio.timeout(PATIENCE_S):
            await self.link.wait_away()

    async def execution(self, guest: FakeGuest, *, stdin: bool = False) -> tuple[Handle, OutputReader]:
        """An execution that the guest has taken."""
        handle, reader = self.link.start("x", JOB, RunOptions(timeout_s=5, stdin=stdin))
        await guest.hear_of("run")
        if stdin:
            await guest.hear_of("watch_input")
        return handle, reader


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[House]:
    house = House(directory)
    await house.link.listen()
    try:
        yield house
    finally:
        await house.link.close()
        for guest in house.guests:
            await guest.leave()


def said(guest: FakeGuest, offset: int, payload: bytes, *, reader: int = 1, channel: int = 1) -> None:
    guest.say("output", payload, execution="x", reader=reader, channel=channel, offset=offset, time_s=0.5)


def finished(guest: FakeGuest, **report: Any) -> None:
    guest.say("finished", execution="x", exit_code=0, **report)


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def ping(house: House, guest: FakeGuest) -> None:
    asking = asyncio.create_task(house.link.ping(PATIENCE_S))
    header, _ = await guest.hear_of("ping")
    guest.say("pong", number=header["number"])
    await asking
