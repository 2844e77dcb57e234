"""The daemon's side of a channel that it opens itself: it attaches to the guest, again and again.

The stream may break anywhere, and neither side sees the other one leave; see `guest.resync`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from enclaved.agent.guest.frames import FrameDecoder
from enclaved.agent.guest.resync import NONCE_BYTES, Awaited, opening, seal
from enclaved.agent.peer import Hearer, hear
from enclaved.errors import EngineRefused, EngineUnavailable, GuestUnavailable
from enclaved.runtime.base import ByteChannel

_log = logging.getLogger(__name__)

ANSWER_DEADLINE_S: Final = 2.0
"""How long the first opening waits for its answer. Each one that has none makes the next wait twice as long: a guest
may be just starting."""
ANSWER_DEADLINE_MOST_S: Final = 15.0
RETRY_S: Final = 0.05
RETRY_MOST_S: Final = 1.0
PING_EVERY_S: Final = 2.0
"""A guest that hears nothing for 6 s takes the daemon for gone."""
PING_PATIENCE_S: Final = 3600.0
"""It may be frozen, and a second ping would only wait behind the first."""
STOP_DEADLINE_S: Final = 5.0
ENVELOPE_BYTES: Final = 64 * 1024
SLOW_BYTES: Final = 64 * 1024


class Pinged(Hearer, Protocol):
    """Who hears what the guest says, and can ask it."""

    async def ping(self, deadline_s: float) -> None:
        """Asks the guest for a sign of life. Raises `GuestUnavailable`."""
        ...


class Attaching:
    """Keeps attached to one guest until it is stopped."""

    def __init__(self, hearer: Pinged, open_channel: Callable[[], AbstractAsyncContextManager[ByteChannel]]) -> None:
        self._hearer, self._open_channel = hearer, open_channel
        self._task = asyncio.create_task(self._keep(), name=f"attach {hearer.sandbox_id}")

    def stop(self) -> None:
        """Lets go of the guest, soon."""
        self._task.cancel()

    async def stopped(self) -> None:
        """Lets go of the guest, and waits until that is done."""
        self.stop()
        await asyncio.wait([self._task], timeout=STOP_DEADLINE_S)

    async def _keep(self) -> None:
        retry_s, patience_s = RETRY_S, ANSWER_DEADLINE_S
        while True:
            try:
                async with self._open_channel() as channel:
                    answered = await AttachedPeer(self._hearer, channel).serve(patience_s)
            except (EngineRefused, EngineUnavailable) as error:
                _log.debug("not attached", extra={"sandbox_id": self._hearer.sandbox_id, "reason": str(error)})
                answered = False
            patience_s = ANSWER_DEADLINE_S if answered else min(patience_s * 2, ANSWER_DEADLINE_MOST_S)
            retry_s = RETRY_S if answered else min(retry_s * 2, RETRY_MOST_S)
            await asyncio.sleep(retry_s)


class AttachedPeer:
    """One attach to a guest. Implements `Peer`."""

    def __init__(self, hearer: Pinged, channel: ByteChannel) -> None:
        self._hearer, self._channel = hearer, channel
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._outgoing = bytearray(opening(self._nonce))
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._answered = False
        self._reading: asyncio.Task[None] | None = None
        self.is_slow = False

    async def serve(self, patience_s: float) -> bool:
        """Passes frames both ways until the stream ends or there is no answer in time; returns whether there was one.

        Raises what goes wrong with a frame by a fault of ours.
        """
        self._reading = asyncio.create_task(self._read(patience_s))
        tasks = [self._reading, asyncio.create_task(self._write()), asyncio.create_task(self._ping())]
        try:
            await asyncio.wait([self._reading])
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            self._hearer.on_gone(self)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return self._answered

    async def _read(self, patience_s: float) -> None:
        awaited, decoder = Awaited(self._nonce), FrameDecoder()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s) as deadline:
                while data := await self._channel.read():
                    data = awaited.feed(data)
                    if awaited.answered and not self._answered:
                        self._answered = True
                        deadline.reschedule(None)
                    hear(self._hearer, self, decoder, data)

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._outgoing:
                data = bytes(self._outgoing)
                self._outgoing.clear()
                await self._channel.write(data)
            if self.is_slow:
                self.is_slow = False
                self._hearer.on_caught_up(self)

    async def _ping(self) -> None:
        """Lets the guest hear from time to time that somebody is here."""
        while True:
            with contextlib.suppress(GuestUnavailable):
                await self._hearer.ping(PING_PATIENCE_S)
            await asyncio.sleep(PING_EVERY_S)

    def write(self, data: bytes) -> None:
        """See `Peer.write`."""
        for start in range(0, len(data), ENVELOPE_BYTES):  # their borders mean nothing
            self._outgoing += seal(self._nonce, data[start : start + ENVELOPE_BYTES])
        self.is_slow = self.is_slow or len(self._outgoing) > SLOW_BYTES
        self._wanted.set()

    def abort(self) -> None:
        """See `Peer.abort`."""
        if self._reading is not None:
            self._reading.cancel()
        self._hearer.on_gone(self)
