"""How sandboxes end: lost, or deleted, on request or because their time is over. A deletion is done for certain."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Final

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.changes import Changes
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError, SandboxLost, Unavailable
from enclaved.metrics import Metrics
from enclaved.model import Cause, SandboxState

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0
RETRY_MOST_S: Final = 30.0
REMOVALS_AT_ONCE: Final = 8


class Removal:
    """The removal of one sandbox, tried until it is done."""

    def __init__(self) -> None:
        self.attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The attempt that runs or comes next."""
        self.hurry = asyncio.Event()

    def settle(self, error: EnclaveError | None) -> None:
        """Tells whoever waits how an attempt ended."""
        attempt, self.attempt = self.attempt, asyncio.get_running_loop().create_future()
        if error is None:
            attempt.set_result(None)
        else:
            attempt.set_exception(error)
            attempt.exception()  # perhaps nobody waits

    async def wait(self) -> None:
        """Waits for the attempt that runs, or has one made at once. Raises what it failed with."""
        self.hurry.set()
        await asyncio.shield(self.attempt)


class Endings:
    """Gives sandboxes up and deletes them, for certain: as long as the engine is away it tries.

    ``forget`` drops a sandbox of which nothing is left; ``unwatch`` ends the watch over one.
    """

    def __init__(
        self,
        *,
        boot: Boot,
        background: Background,
        changes: Changes,
        metrics: Metrics,
        known: Callable[[str], SandboxRecord | None],
        forget: Callable[[SandboxRecord], None],
        unwatch: Callable[[SandboxRecord], None],
    ) -> None:
        self._boot, self._background, self._changes, self._metrics = boot, background, changes, metrics
        self._known, self._forget, self._unwatch = known, forget, unwatch
        self._gate = asyncio.Semaphore(REMOVALS_AT_ONCE)
        self._removals: dict[SandboxRecord, Removal] = {}

    # -- lost

    def give_up(self, record: SandboxRecord, why: str) -> None:
        """Its executions are lost, its container goes, its record says why."""
        if record.state is SandboxState.DELETING:
            return
        log.error("sandbox lost", extra={"sandbox_id": record.id, "reason": why})
        self._metrics.sandboxes.ended(Cause.ENGINE)
        self._changes.enter(record, SandboxState.ERROR, why, Cause.ENGINE)
        if record.link is not None:
            record.link.fail(SandboxLost(record.id, why))
        self.clear_later(record)

    def clear_later(self, record: SandboxRecord) -> None:
        """Removes the container of a sandbox that is lost, and keeps the record."""
        self._background.spawn(self._clear(record), f"clear {record.id}")

    async def _clear(self, record: SandboxRecord) -> None:
        delay_s = RETRY_S
        while record.container_id is not None and record.state is SandboxState.ERROR:
            try:
                async with record.lock:
                    await self._boot.down(record)
                    if self._known(record.id) is record:
                        self._changes.settled(record)
            except EnclaveError as error:
                log.warning("container left for now", extra={"sandbox_id": record.id, "reason": str(error)})
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MOST_S)

    # -- deleted

    def expire_later(self, record: SandboxRecord) -> None:
        """Removes a sandbox at the end of its time to live, as that is now."""
        if record.expiry is not None:
            record.expiry.cancel()
        end = record.born + record.spec.ttl_s
        record.expiry = asyncio.get_running_loop().call_at(end, self._expire, record, context=contextvars.Context())

    def _expire(self, record: SandboxRecord) -> None:
        log.info("sandbox expired", extra={"sandbox_id": record.id, "ttl_s": record.spec.ttl_s})
        self.delete(record, "its time to live is over", Cause.TTL)

    def delete(
        self, record: SandboxRecord, why: str, cause: Cause, *, after: asyncio.Event | None = None
    ) -> Removal | None:
        """Writes down that a sandbox is being deleted, ends what runs in it, and removes it in the background.

        With ``after`` that waits for an event. Returns the removal; ``None`` if it is gone already.
        """
        if self._known(record.id) is not record:
            return None
        removal = self._removals.get(record)
        if removal is not None:
            return removal
        removal = self._removals[record] = Removal()
        if record.was_made and record.state not in (SandboxState.ERROR, SandboxState.DELETING):
            self._metrics.sandboxes.ended(cause)
        self._changes.enter(record, SandboxState.DELETING, why, cause)
        self._unwatch(record)
        record.stop_clocks()
        if record.making is not None:
            record.making.reschedule(asyncio.get_running_loop().time())
        if record.link is not None:
            record.link.send({"type": "park", "number": 0})  # should the engine take its time
            record.link.fail(SandboxLost(record.id, "it was deleted"))
        self._go_on(record, removal, cause, after)
        return removal

    def _go_on(self, record: SandboxRecord, removal: Removal, cause: Cause, after: asyncio.Event | None = None) -> None:
        """Removes in the background. What nobody expects to fail is logged, told and tried again all the same."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                removal.settle(
                    Unavailable(f"sandbox {record.id!r} could not be removed; it will be tried again", RETRY_S)
                )
                again = (record, removal, cause)
                asyncio.get_running_loop().call_later(RETRY_S, self._go_on, *again, context=contextvars.Context())

        self._background.spawn(self._remove(record, removal, cause, after), f"delete {record.id}").add_done_callback(
            look
        )

    async def _remove(self, record: SandboxRecord, removal: Removal, cause: Cause, after: asyncio.Event | None) -> None:
        if after is not None:
            await after.wait()
        delay_s = RETRY_S
        while True:
            removal.hurry.clear()
            try:
                async with record.lock, self._gate:
                    await self._boot.down(record)
                    break
            except EnclaveError as error:
                self._explain(record, error, cause)
                removal.settle(error)
            try:
                async with asyncio.timeout(delay_s):
                    await removal.hurry.wait()
            except TimeoutError:
                delay_s = min(2 * delay_s, RETRY_MOST_S)
        self._removals.pop(record, None)
        self._forget(record)
        removal.settle(None)
        log.info("sandbox deleted", extra={"sandbox_id": record.id, "cause": cause.value})

    def drop(self, record: SandboxRecord) -> None:
        """Forgets a sandbox of which nothing was made."""
        self._forget(record)

    def _explain(self, record: SandboxRecord, error: EnclaveError, cause: Cause) -> None:
        trouble = f"; it cannot be removed yet: {error}"
        if not record.state_reason.endswith(trouble):
            log.warning("sandbox not deleted yet", extra={"sandbox_id": record.id, "reason": str(error)})
            why = record.history[-1].reason if record.history else ""
            record.state_reason = f"{why}{trouble}"
            self._changes.note(record, cause)
