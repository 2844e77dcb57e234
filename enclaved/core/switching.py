"""Stops sandboxes and starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.changes import Changes
from enclaved.core.endings import Endings
from enclaved.core.record import SandboxRecord
from enclaved.core.startup_command import StartupCommands
from enclaved.errors import EnclaveError, EngineUnavailable, SandboxLost, ShuttingDown, WrongState
from enclaved.model import Cause, SandboxState

log = logging.getLogger(__name__)

ON_REQUEST: Final = "stopped on request"
RETRY_S: Final = 2.0


class Switching:
    """Brings sandboxes up and down. ``began`` is told of one that runs, ``unwatch`` ends the watch over one."""

    def __init__(
        self,
        *,
        boot: Boot,
        background: Background,
        changes: Changes,
        endings: Endings,
        began: Callable[[SandboxRecord], None],
        unwatch: Callable[[SandboxRecord], None],
        closing: Callable[[], bool],
    ) -> None:
        self._boot, self._background, self._changes, self._endings = boot, background, changes, endings
        self._began, self._unwatch, self._closing = began, unwatch, closing
        self.commands = StartupCommands()

    async def up(self, record: SandboxRecord) -> None:
        """Makes the container of a sandbox, whose lock the caller holds, and waits for its guest.

        Raises `SandboxLost` if it is deleted meanwhile, and as `Boot.up`.
        """
        age_s = asyncio.get_running_loop().time() - record.born
        try:
            async with asyncio.timeout(None) as record.making:
                await self._boot.up(record, max(1.0, record.spec.ttl_s - age_s))
        except TimeoutError:
            if record.state is not SandboxState.DELETING:
                raise
        finally:
            record.making = None
        if record.state is SandboxState.DELETING:
            if self._closing():
                raise ShuttingDown
            raise SandboxLost(record.id, "it was deleted while it was being made")

    async def start(self, record: SandboxRecord) -> None:
        """Starts a stopped sandbox, whose lock the caller holds; one that runs is left as it is.

        With its command, or not at all: where that cannot begin, it stays stopped. Raises `WrongState`, `NoSpace`, as
        `up`, and what keeps its command from beginning.
        """
        if record.state is SandboxState.RUNNING:
            return
        if record.state is SandboxState.STOPPING:
            await self.finish(record)
        if record.state is not SandboxState.STOPPED:
            text = f"sandbox {record.id!r} is {record.state.value}: {record.state_reason}; delete it"
            raise WrongState(f"sandbox/{record.id}", record.state.value, SandboxState.STOPPED.value, text)
        command = self.commands.admit(record)
        self.commands.expect(record, command)
        # On a full disk it must not start at all.
        if record.container_id is not None:
            self._changes.move(record, SandboxState.RUNNING, Cause.REQUEST)
        else:
            self._changes.move(record, SandboxState.INITIALIZING, Cause.REQUEST)
            await self._up_again(record)
        record.touch()
        self._began(record)
        try:
            await self.commands.begin(record, command)
        except EnclaveError as error:
            await self._take_back(record, f"its command could not begin: {error}")
            raise
        finally:
            if command is not None:
                self._changes.settled(record)

    async def _take_back(self, record: SandboxRecord, why: str) -> None:
        """Stops a sandbox again, unless that is out of date, since not all of it could be started."""
        self.commands.expect(record, None)
        if record.state is SandboxState.RUNNING:
            self._changes.enter(record, SandboxState.STOPPING, "", Cause.DAEMON)
            self._unwatch(record)
            with contextlib.suppress(EnclaveError):  # it is given up then
                await self._finish(record, why, Cause.DAEMON)

    async def _up_again(self, record: SandboxRecord) -> None:
        try:
            await self.up(record)
        except BaseException as error:
            if record.container_id is None:
                self._changes.enter(record, SandboxState.STOPPED, "it could not be started again", Cause.REQUEST)
            else:  # what was made could not be removed yet
                self._endings.give_up(record, f"it could not be started again: {error}")
            raise
        record.limits_due = False
        self._changes.enter(record, SandboxState.RUNNING, "", Cause.REQUEST)

    async def stop(self, record: SandboxRecord) -> None:
        """Kills everything in a sandbox that runs, whose lock the caller holds."""
        self._changes.enter(record, SandboxState.STOPPING, "", Cause.REQUEST)
        self._unwatch(record)
        await self._finish(record)

    async def finish(self, record: SandboxRecord) -> None:
        """Brings the stop of a sandbox to its end, whose lock the caller holds, that an earlier daemon has begun.

        Raises `EngineUnavailable` and `GuestUnavailable`; it can be tried again.
        """
        if not record.spec.remove_on_exit and record.link is not None:
            record.link.check_ready()
        await self._go_on_to_stop(record)

    async def _go_on_to_stop(self, record: SandboxRecord) -> None:
        if record.spec.remove_on_exit or record.link is None:
            await self._boot.down(record)
        await self._finish(record)

    async def _finish(self, record: SandboxRecord, why: str = ON_REQUEST, cause: Cause = Cause.REQUEST) -> None:
        try:
            if record.spec.remove_on_exit or record.link is None:
                if record.link is not None:
                    record.link.fail(SandboxLost(record.id, "it was stopped"))
                await self._boot.down(record)
            else:
                await record.link.park()
        except EnclaveError as error:
            self._endings.give_up(record, f"it could not be stopped: {error}")
            raise
        self._changes.enter(record, SandboxState.STOPPED, why, cause)
        log.info("sandbox stopped", extra={"sandbox_id": record.id, "reason": why})

    async def finish_later(self, record: SandboxRecord) -> None:
        """Brings the stop of a sandbox to its end that an earlier daemon has begun, as soon as the engine answers."""
        while True:
            async with record.lock:
                if record.state is not SandboxState.STOPPING:
                    return
                with contextlib.suppress(EngineUnavailable):
                    await self._go_on_to_stop(record)
                    return
            await asyncio.sleep(RETRY_S)
