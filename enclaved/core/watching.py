"""Watches over the containers and guests of sandboxes: by their connections, by pings, and by looks at the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from enclaved.agent.link import GuestLink
from enclaved.core.hearsay import TEXTS, Hearsay
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineUnavailable, GuestUnavailable, NoSpace
from enclaved.model import Intervention, SandboxState
from enclaved.runtime.base import ContainerStatus, Runtime

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.5
PING_EVERY_S = 2.0
PING_PATIENCE_S = 3.0
BUSY_PATIENCE_S = 12.0
"""How much longer a guest may be silent whose programs use the processor time that it shares with them."""
BUSY_SHARE = 0.01
"""The part of one processor from which on they do."""
RECONNECT_DEADLINE_S = 5.0
PAUSED_PING_S = 3600.0
PAUSED_STATUS_EVERY_S = 2.0
REJOIN_PATIENCE_S = 1.2
"""Guests look for their daemon at least each second: so long, the engine need not be asked for any of them."""
REJOIN_DEADLINE_S = 10.0
LISTEN_RETRY_S = 2.0
LOOKS_AT_ONCE = 8

OnLost = Callable[[SandboxRecord, str], None]
Seen = Callable[[SandboxRecord, bool], None]


class Watching:
    """Finds out what became of sandboxes. ``seen`` is told whether the container of one is paused."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self.hearsay = Hearsay()

    async def look(self, record: SandboxRecord, on_lost: OnLost, seen: Seen) -> None:
        """Looks once at a sandbox of which something was heard. Raises `EngineUnavailable`."""
        container_id = record.container_id
        if container_id is None:
            return
        before = None
        while before != record.updated_at:  # an answer from before a change says nothing
            before = record.updated_at
            async with self._looks:
                status = await self._runtime.status(container_id)
        if record.container_id != container_id:
            return
        if record.link is not None and record.link.is_another:
            on_lost(record, self._blame(record, container_id, Intervention.RESTARTED))
        elif status is None or not status.running:
            on_lost(record, await self._end(record, container_id, status))
        elif status.paused is not (record.state is SandboxState.PAUSED):
            seen(record, status.paused)

    async def rejoin(self, record: SandboxRecord, seen: Seen) -> str:
        """Listens for the guest of a sandbox that was taken up; returns why it is lost, or nothing once it is there.

        While the engine is away, or the container paused, there is no hurry. ``seen`` is told whether it is.
        """
        link, container_id = record.link, record.container_id
        if link is None or container_id is None:
            return "its container is not known"
        await self._listen_again(link)
        loop, patience_s = asyncio.get_running_loop(), REJOIN_PATIENCE_S
        deadline: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await link.wait_connected()
                    seen(record, False)
                    return ""
            if link.is_another:
                return self._blame(record, container_id, Intervention.RESTARTED)
            if link.stranger:
                return link.stranger
            patience_s = STATUS_EVERY_S
            try:
                async with self._looks:
                    status = await self._runtime.status(container_id)
            except EngineUnavailable:
                deadline = None
                continue
            if status is None or not status.running:
                return await self._end(record, container_id, status)
            if status.paused:
                seen(record, True)
                patience_s = PAUSED_STATUS_EVERY_S
            if deadline is None or status.paused:
                deadline = loop.time() + REJOIN_DEADLINE_S
            elif loop.time() > deadline:
                return f"its guest did not come back within {REJOIN_DEADLINE_S:g} s of the daemon's return"

    @staticmethod
    async def _listen_again(link: GuestLink) -> None:
        """Listens where an earlier daemon did, as soon as the host lets it: its programs run on meanwhile."""
        while True:
            try:
                await link.listen()
            except NoSpace as error:
                log.error("cannot listen for a guest", extra={"sandbox_id": link.sandbox_id, "reason": str(error)})
                await asyncio.sleep(LISTEN_RETRY_S)
            else:
                return

    async def watch(self, record: SandboxRecord, on_lost: OnLost, seen: Seen) -> None:
        """Watches over a sandbox that runs or is paused until it is lost. ``seen`` is told when it is paused or not."""
        link, container_id = record.link, record.container_id
        if link is None or container_id is None:
            return
        while True:
            if record.state is SandboxState.PAUSED and link.connected:
                await self._await_thaw(record, link, container_id, seen)
                continue
            try:
                async with asyncio.timeout(PING_EVERY_S):
                    await link.wait_away()
            except TimeoutError:
                reason = await self._frozen(record, link, container_id, seen)
            else:
                reason = await self._gone(record, link, container_id, seen)
            if reason:
                on_lost(record, reason)
                return

    async def _await_thaw(
        self,
        record: SandboxRecord,
        link: GuestLink,
        container_id: str,
        seen: Seen,
    ) -> None:
        """Waits until a paused guest answers or is gone. No engine need be asked for that."""
        signs = [asyncio.ensure_future(link.ping(PAUSED_PING_S)), asyncio.ensure_future(link.wait_away())]
        try:
            await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            answered = signs[0].done() and signs[0].exception() is None
        finally:
            for sign in signs:
                sign.cancel()
            await asyncio.gather(*signs, return_exceptions=True)
        async with record.lock:
            pass  # whoever changes it may have been the one who let it go on
        if answered and record.state is SandboxState.PAUSED:
            try:
                status = await self._runtime.status(container_id)
            except EngineUnavailable:
                await asyncio.sleep(STATUS_EVERY_S)
            else:
                if status is not None and not status.paused:
                    seen(record, False)

    async def _frozen(
        self,
        record: SandboxRecord,
        link: GuestLink,
        container_id: str,
        seen: Seen,
    ) -> str:
        """Why a connected guest must be given up; empty if it answers, or is paused."""
        asked_at = asyncio.get_running_loop().time()
        try:
            await self._ping(link, container_id)
        except GuestUnavailable:
            if not link.connected or record.state is SandboxState.PAUSED:
                return ""
            try:
                status = await self._runtime.status(container_id)
            except EngineUnavailable:
                # The way to a guest that is attached to leads through the engine, which may come back.
                return "" if link.attaches else "its guest stopped answering, and so did the engine"
            if status is not None and status.paused:
                record.paused_at = asyncio.get_running_loop().time()
                seen(record, True)
                return ""
            if record.lock.locked() or record.paused_at >= asked_at:
                return ""  # it was paused in between, on request
            if await link.renewed(RECONNECT_DEADLINE_S):
                return ""
            return f"its guest did not answer for {round(asyncio.get_running_loop().time() - asked_at, 1):g} s"
        return ""

    async def _ping(self, link: GuestLink, container_id: str) -> None:
        """Asks a guest for a sign of life; a second time, and for longer, where it may be waiting for its turn to run.

        Raises `GuestUnavailable`.
        """
        used_s = self._cpu_s(container_id)
        try:
            await link.ping(PING_PATIENCE_S)
        except GuestUnavailable:
            if self._cpu_s(container_id) - used_s < BUSY_SHARE * PING_PATIENCE_S or not link.connected:
                raise
            log.info("a guest is slow to answer, and its programs are busy", extra={"sandbox_id": link.sandbox_id})
            await link.ping(BUSY_PATIENCE_S)

    def _cpu_s(self, container_id: str) -> float:
        """The processor time that a sandbox has used; 0 where that cannot be known."""
        usage = self._runtime.usage(container_id)
        return 0.0 if usage is None else usage.cpu_user_s + usage.cpu_system_s

    async def _gone(
        self,
        record: SandboxRecord,
        link: GuestLink,
        container_id: str,
        seen: Seen,
    ) -> str:
        """Why a guest that is away must be given up; empty if it came back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RECONNECT_DEADLINE_S
        away = False
        while True:
            try:
                status = await self._runtime.status(container_id)
            except EngineUnavailable:
                status = None
                dead, away = False, True
                if link.attaches:
                    deadline = loop.time() + RECONNECT_DEADLINE_S
            else:
                dead = status is None or not status.running
            if link.is_another:
                return self._blame(record, container_id, Intervention.RESTARTED)
            if dead:
                return await self._end(record, container_id, status, engine_was_away=away)
            if status is not None and status.paused:
                seen(record, True)
                deadline = loop.time() + RECONNECT_DEADLINE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_EVERY_S):
                    await link.wait_connected()
                    return ""
            if loop.time() > deadline:
                return f"its guest went away and did not come back within {RECONNECT_DEADLINE_S:g} s"

    async def _end(
        self,
        record: SandboxRecord,
        container_id: str,
        status: ContainerStatus | None,
        *,
        engine_was_away: bool = False,
    ) -> str:
        """How a container that runs no more ended. While its sandbox is to run, it is never us who end it."""
        who = Intervention.REMOVED if status is None else await self.hearsay.who_ended(container_id)
        if record.state not in (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED):
            return "it was ended"  # meanwhile, and nobody asks any more
        if record.link is not None and record.link.is_another:
            who = Intervention.RESTARTED
        elif status is not None and (who is None or engine_was_away):
            memory = " (out of memory)" if status.oom_killed else ""
            when = " while the engine was away" if engine_was_away else ""
            return f"its container ended with code {status.exit_code}{memory}{when}"
        return self._blame(record, container_id, who or Intervention.REMOVED)

    def _blame(self, record: SandboxRecord, container_id: str, who: Intervention) -> str:
        if self.hearsay.is_news(container_id):
            record.metrics.engine.intervened(who)
        return TEXTS[who]
