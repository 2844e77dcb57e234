"""The daemon's side of a channel that it opens itself, against a guest and an engine that break in every way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent import attached
from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.guest.resync import BROKEN, Opener, Opening, answer
from enclaved.agent.handle import RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.link import GuestLink
from enclaved.errors import EngineUnavailable, SandboxLost
from tests.unit.agent.scripted import HELLO, PATIENCE_S


class Stream:
    """One attach, and the guest behind it. Implements `ByteChannel`."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.opener, self.decoder = Opener(), FrameDecoder()
        self.heard: list[str] = []
        self.news = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.nonce: bytes | None = None

    async def read(self) -> bytes:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        await self.may_write.wait()
        for frame in self.opener.feed(data):
            if isinstance(frame, Opening):
                self.nonce = frame.nonce
            else:
                self.heard += [header["type"] for header, _ in self.decoder.feed(frame)]
        self.news.set()

    def say(self, kind: str, **fields: Any) -> None:
        self.incoming.put_nowait(encode_frame({"type": kind, **fields}))

    async def greet(self) -> None:
        """Answers the opening, and is ready."""
        while self.nonce is None:
            self.news.clear()
            await self.news.wait()
        self.incoming.put_nowait(b"half a fra" + answer(self.nonce) + encode_frame(HELLO))
        self.say("ready")

    async def hears(self, kind: str) -> None:
        while kind not in self.heard:
            self.news.clear()
            await self.news.wait()

    def end(self) -> None:
        self.incoming.put_nowait(b"")


class Engine:
    """Lends streams."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.failures = 0
        self.open = 0

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Stream]:
        if self.failures:
            self.failures -= 1
            raise EngineUnavailable("test", "it sleeps")
        stream = Stream()
        self.streams.put_nowait(stream)
        self.open += 1
        try:
            yield stream
        finally:
            self.open -= 1


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def link(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GuestLink]:
    monkeypatch.setattr(attached, "RETRY_MOST_S", 0.01)
    made = GuestLink("box", Path("/nonexistent"), group_id=0, guest_uids={os.getuid()}, open_channel=engine.channel)
    await made.listen()
    yield made
    await soon(made.close())
    assert engine.open == 0


async def test_a_guest_that_answers_is_there_and_one_whose_stream_ends_is_attached_again(
    engine: Engine, link: GuestLink
) -> None:
    first = await soon(engine.streams.get())
    await soon(first.greet())
    await soon(link.wait_connected())
    first.end()
    await soon(link.wait_away())
    second = await soon(engine.streams.get())
    await soon(second.greet())
    await soon(link.wait_connected())
    assert engine.open == 1


async def test_an_engine_that_is_away_is_asked_until_it_is_back(engine: Engine, link: GuestLink) -> None:
    first = await soon(engine.streams.get())
    engine.failures = 5
    first.end()
    stream = await soon(engine.streams.get())
    await soon(stream.greet())
    await soon(link.wait_connected())
    assert engine.failures == 0


async def test_an_opening_without_an_answer_is_said_again(
    engine: Engine, link: GuestLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "ANSWER_DEADLINE_MOST_S", 0.05)
    (await soon(engine.streams.get())).end()
    silent = await soon(engine.streams.get())
    silent.say("hello", version=2)  # it answers somebody else
    stream = await soon(engine.streams.get())
    await soon(stream.greet())
    await soon(link.wait_connected())


async def test_nonsense_and_a_guest_that_drops_the_daemon_end_the_stream(engine: Engine, link: GuestLink) -> None:
    for nonsense in (BROKEN, encode_frame({**HELLO, "sandbox": "another"}), b"\x00\x00\x00\x03\x00\x03[1]"):
        stream = await soon(engine.streams.get())
        await soon(stream.greet())
        await soon(link.wait_connected())
        stream.incoming.put_nowait(nonsense)
        await soon(link.wait_away())
    last = await soon(engine.streams.get())
    await soon(last.greet())
    await soon(link.wait_connected())


async def test_a_guest_that_does_not_answer_is_attached_again(engine: Engine, link: GuestLink) -> None:
    first = await soon(engine.streams.get())
    await soon(first.greet())
    await soon(link.wait_connected())
    renewing = asyncio.create_task(link.renewed(PATIENCE_S))
    second = await soon(engine.streams.get())
    await soon(second.greet())
    assert await renewing
    assert not await link.renewed(0.01)


async def test_what_is_said_while_the_stream_is_full_waits_and_is_bounded(engine: Engine, link: GuestLink) -> None:
    stream = await soon(engine.streams.get())
    await soon(stream.greet())
    await soon(link.wait_connected())
    stream.may_write.clear()
    handle, _ = link.start("x", WireJob(b"{}", None), RunOptions(timeout_s=5))
    while not link.congested:
        handle.send("subscribe", reader=1)
    handle.cancel()
    stream.may_write.set()
    await soon(stream.hears("cancel"))
    assert not link.congested


async def test_the_guest_is_pinged_so_that_it_knows_that_somebody_is_there(engine: Engine, link: GuestLink) -> None:
    stream = await soon(engine.streams.get())
    await soon(stream.greet())
    await soon(stream.hears("ping"))


async def test_a_sandbox_that_is_lost_is_not_attached_any_more(engine: Engine, link: GuestLink) -> None:
    stream = await soon(engine.streams.get())
    await soon(stream.greet())
    await soon(link.wait_connected())
    link.fail(SandboxLost("box", "it burned"))
    await soon(link.wait_away())
    await link.close()
    assert engine.open == 0
    assert engine.streams.empty()
