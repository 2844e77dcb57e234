"""All sandboxes of this daemon: create, look, watch, change, delete. Each of these has a module of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from typing import Any

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.changes import Changes
from enclaved.core.creation import Creation, Wish
from enclaved.core.endings import Endings
from enclaved.core.idling import Idling
from enclaved.core.listing import page_of
from enclaved.core.pausing import Pausing
from enclaved.core.policy import Policy
from enclaved.core.record import SandboxRecord
from enclaved.core.state import SandboxTable
from enclaved.core.switching import Switching
from enclaved.core.updating import Updating
from enclaved.errors import SandboxNotFound, ShuttingDown
from enclaved.metrics import Metrics
from enclaved.model import (
    EMPTY,
    Bookmark,
    Cause,
    Sandbox,
    SandboxEvent,
    SandboxFilter,
    SandboxPage,
    SandboxRequest,
    SandboxState,
    SandboxUpdate,
    StateChange,
    ToolDescription,
)
from enclaved.tools.registry import ToolRegistry

log = logging.getLogger(__name__)

Change = Callable[[SandboxRecord], Coroutine[Any, Any, None]]


class Sandboxes:
    """Owns every sandbox from its admission until it is forgotten."""

    def __init__(
        self,
        *,
        boot: Boot,
        policy: Policy,
        tools: ToolRegistry,
        background: Background,
        metrics: Metrics,
        table: SandboxTable,
    ) -> None:
        self._boot, self.policy, self._tools = boot, policy, tools
        self._background, self._metrics = background, metrics
        self._records: dict[str, SandboxRecord] = {}
        self._closing = asyncio.Event()
        self._changes = Changes(table, metrics)
        self._endings = Endings(
            boot=boot,
            background=background,
            changes=self._changes,
            metrics=metrics,
            known=self.known,
            forget=self._forget,
            unwatch=self._unwatch,
        )
        self._idling = Idling(table, self._end_idle)
        self._pausing = Pausing(boot, self._changes.enter)
        self._updating = Updating(
            boot=boot, policy=policy, background=background, changes=self._changes, renewed=self._renewed
        )
        self._switching = Switching(
            boot=boot,
            background=background,
            changes=self._changes,
            endings=self._endings,
            began=self._watch,
            unwatch=self._unwatch,
            closing=self._closing.is_set,
        )
        self.commands = self._switching.commands
        self._creation = Creation(
            self._records,
            boot=boot,
            policy=policy,
            background=background,
            metrics=metrics,
            changes=self._changes,
            chronicle=table.chronicle,
            endings=self._endings,
            commands=self.commands,
            up=self._switching.up,
            began=self._began,
            closing=self._closing.is_set,
        )

    # -- looking

    def record(self, sandbox_id: str) -> SandboxRecord:
        """Finds a sandbox. Raises `SandboxNotFound`, also for what cannot be an id."""
        record = self._records.get(sandbox_id)
        if record is None:
            raise SandboxNotFound(sandbox_id[:64])
        return record

    def known(self, sandbox_id: str) -> SandboxRecord | None:
        """Finds a sandbox, if there is one."""
        return self._records.get(sandbox_id)

    @property
    def records(self) -> Collection[SandboxRecord]:
        """Every sandbox that is known, also one that is being made or removed."""
        return self._records.values()

    def with_containers(self) -> tuple[SandboxRecord, ...]:
        """Lists the sandboxes whose containers run unless somebody else ended them."""
        states = (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED)
        return tuple(one for one in self._records.values() if one.container_id and one.state in states)

    def get(self, sandbox_id: str) -> Sandbox:
        """Shows a sandbox. Raises `SandboxNotFound`."""
        return self.record(sandbox_id).snapshot()

    def history(self, sandbox_id: str) -> tuple[StateChange, ...]:
        """The last changes of a sandbox's state, oldest first. Raises `SandboxNotFound`."""
        return tuple(self.record(sandbox_id).history)

    def list(
        self,
        *,
        labels: Mapping[str, str] = EMPTY,
        states: Collection[SandboxState] = (),
        page_size: int = 0,
        page_token: str = "",
        wanted: SandboxFilter | None = None,
    ) -> SandboxPage:
        """Lists sandboxes, oldest first, a page at a time: those that are ``wanted``, or have these labels and states.

        Raises `InvalidRequest` for a bad size or token.
        """
        wanted = wanted or SandboxFilter(labels, frozenset(states))
        return page_of(self._records.values(), wanted, self._changes.written, page_size, page_token)

    def watch(
        self, revision: int = 0, wanted: SandboxFilter | None = None, heartbeat_s: float = 0.0
    ) -> AsyncGenerator[SandboxEvent | Bookmark]:
        """Tells of every change after a revision; see `Changes.follow`."""
        return self._changes.follow(revision, wanted, heartbeat_s)

    def end_watches(self) -> None:
        """Ends all watches, since the daemon stops and they would never end by themselves."""
        self._changes.end_following()

    def tools(self, sandbox_id: str = "") -> tuple[ToolDescription, ...]:
        """Lists the tools of a sandbox, or all of the daemon. Raises `SandboxNotFound`."""
        enabled = self.record(sandbox_id).spec.tools if sandbox_id else None
        return self._tools.descriptions(enabled)

    @property
    def active(self) -> int:
        """Sandboxes that use the engine or are about to."""
        idle = (SandboxState.STOPPED, SandboxState.ERROR)
        return sum(record.state not in idle for record in self._records.values())

    # -- making

    async def create(
        self,
        request: SandboxRequest,
        *,
        sandbox_id: str = "",
        labels: Mapping[str, str] = EMPTY,
        pool_id: str = "",
        request_id: str = "",
    ) -> Sandbox:
        """Admits, makes and starts a sandbox; a caller that goes away meanwhile gets none.

        ``pool_id`` names the pool that it becomes a member of. The same ``request_id`` is the same sandbox. Raises
        `InvalidRequest`, `PolicyDenied`, `SandboxExists`, `RequestEnded`, `LimitReached`, `NoSpace`, `SandboxLost` if
        it is deleted meanwhile, and what `Runtime` raises.
        """
        try:
            return await self._creation.create(Wish(request, sandbox_id, labels, pool_id, request_id))
        except BaseException as error:
            self._metrics.sandboxes.created(error)
            raise

    async def asked_before(self, request_id: str, digest: str) -> Sandbox | None:
        """The sandbox that a request made, if it came before; see `Creation.asked_before`."""
        return await self._creation.asked_before(request_id, digest)

    async def hand_over(self, record: SandboxRecord, update: SandboxUpdate, request: tuple[str, str]) -> Sandbox:
        """Makes a member of a pool somebody's own sandbox; raises `SandboxNotFound`, and as `Updating.hand_over`."""

        async def give(known: SandboxRecord) -> None:
            # With nothing awaited until it counts for its new owner: claims at the same time each count.
            self._creation.check_claim(known)
            await self._updating.hand_over(known, update, *request)

        found = await self._changed(record.id, give)
        self._creation.claimed(record)
        return found

    def check_room(self, count: int, field: str) -> None:
        """Looks before a pool makes ``count`` members whether there may be so many, and counts them as made.

        Raises `PolicyDenied` if never (naming the field that asks for them), `LimitReached` if not now.
        """
        self._creation.check_room(count, field)
        self._creation.take_pool(count)

    # -- changing

    async def start(self, sandbox_id: str) -> Sandbox:
        """Starts a stopped sandbox again, and resumes a paused one.

        Raises `WrongState` if it was lost or is being deleted, `SandboxNotFound`, `NoSpace`, `SandboxLost`.
        """
        record = self.record(sandbox_id)
        async with record.lock:
            self._still_known(record)
            if self._closing.is_set():
                raise ShuttingDown
            if record.state is SandboxState.PAUSED:
                await self._pausing.resume(record)
            else:
                await self._switching.start(record)
            return record.snapshot()

    async def stop(self, sandbox_id: str) -> Sandbox:
        """Kills everything in a sandbox at once. Keeps files and container only without ``remove_on_exit``."""
        return await self._changed(sandbox_id, self._stop)

    async def _stop(self, record: SandboxRecord) -> None:
        if record.state is SandboxState.PAUSED and not record.spec.remove_on_exit:
            await self._pausing.resume(record)  # its guest is to end what runs
        if record.state in (SandboxState.RUNNING, SandboxState.PAUSED):
            await self._switching.stop(record)
        elif record.state is SandboxState.STOPPING:
            await self._switching.finish(record)

    async def pause(self, sandbox_id: str) -> Sandbox:
        """Freezes a running sandbox. Raises `SandboxNotFound`, and what `Pausing.pause` raises."""
        return await self._changed(sandbox_id, self._pausing.pause)

    async def resume(self, sandbox_id: str) -> Sandbox:
        """Lets a paused sandbox go on. Raises `SandboxNotFound`, and what `Pausing.resume` raises."""
        return await self._changed(sandbox_id, self._pausing.resume)

    async def awake(self, sandbox_id: str) -> SandboxRecord:
        """Finds a sandbox that is to be used; resumes one that is paused and wants that. Raises as `resume`."""
        if (record := self.record(sandbox_id)).sleeps_lightly:
            await self.resume(sandbox_id)
        record.touch()
        return record

    async def update(self, sandbox_id: str, update: SandboxUpdate) -> Sandbox:
        """Changes a sandbox: all that is asked for, or nothing. Raises `SandboxNotFound`, and as `Updating.update`."""
        return await self._changed(sandbox_id, lambda record: self._updating.update(record, update))

    async def _changed(self, sandbox_id: str, change: Change) -> Sandbox:
        """Changes a sandbox under its lock, to the end even if the caller leaves."""
        record = self.record(sandbox_id)

        async def locked() -> None:
            # With the lock inside: whoever waits for it must find the work done, also when its caller has left.
            async with record.lock:
                self._still_known(record)
                await change(record)

        await self._background.finish(locked(), f"change {sandbox_id}")
        return record.snapshot()

    def seen(self, record: SandboxRecord, paused: bool) -> None:
        """Somebody looked at the container of a sandbox. See `Pausing.seen`."""
        self._pausing.seen(record, paused)

    def _still_known(self, record: SandboxRecord) -> None:
        if self._records.get(record.id) is not record:
            raise SandboxNotFound(record.id)

    def _renewed(self, record: SandboxRecord) -> None:
        self._endings.expire_later(record)
        self._idling.watch(record)

    # -- ending

    async def delete(self, sandbox_id: str, *, wait: bool = True) -> None:
        """Deletes a sandbox: that is certain when this returns, and done with ``wait``.

        Raises `SandboxNotFound`, and with ``wait`` what keeps it from being done at once (`EngineUnavailable`).
        """
        record = self.record(sandbox_id)
        cause = Cause.DAEMON if record.pool_id or self._closing.is_set() else Cause.REQUEST
        removal = self._endings.delete(record, "deleted on request", cause)
        if wait and removal is not None:
            await removal.wait()

    def lose(self, record: SandboxRecord, why: str) -> None:
        """Gives a sandbox up: its executions are lost, its container goes, its record says why."""
        stopped = record.state is SandboxState.STOPPED and record.container_id is not None
        stopping = record.state is SandboxState.STOPPING and not record.lock.locked()
        if record.state in (SandboxState.RUNNING, SandboxState.PAUSED) or stopped or stopping:
            self._endings.give_up(record, why)

    def _end_idle(self, record: SandboxRecord) -> None:
        self._endings.delete(record, "nobody used it for its idle timeout", Cause.IDLE)

    def _forget(self, record: SandboxRecord) -> None:
        if self._records.get(record.id) is record:
            del self._records[record.id]
            self._creation.forget(record)
            self._changes.forget(record)
            self._boot.return_uid(record.gid)
            record.forgotten()

    # -- watching over them

    def _began(self, record: SandboxRecord) -> None:
        """A new sandbox runs."""
        self._endings.expire_later(record)
        self._idling.watch(record)
        self._watch(record)

    def _watch(self, record: SandboxRecord) -> None:
        self._unwatch(record)
        if record.state is not SandboxState.DELETING:
            watch = self._boot.watching.watch(record, self.lose, self.seen)
            record.watcher = self._background.spawn(watch, f"watch {record.id}")

    @staticmethod
    def _unwatch(record: SandboxRecord) -> None:
        if record.watcher is not None:
            record.watcher.cancel()
            record.watcher = None

    # -- beginning and end of the daemon

    def take_up(self, record: SandboxRecord, rejoin: Change) -> None:
        """Goes on with a sandbox of an earlier daemon. ``rejoin`` brings its guest back, if there is to be one."""
        self._know(record)
        if record.state is SandboxState.INITIALIZING:  # it was stopped before, and is that again
            why = "the daemon was killed while it was started again"
            self._changes.enter(record, SandboxState.STOPPED, why, Cause.DAEMON)
        self._endings.expire_later(record)
        self._idling.take_up(record)
        if record.state is SandboxState.ERROR:
            self._endings.clear_later(record)
        elif record.state is SandboxState.STOPPING and record.spec.remove_on_exit:
            self._background.spawn(self._switching.finish_later(record), f"stop {record.id}")
        elif record.container_id is not None:
            record.watcher = self._background.spawn(rejoin(record), f"rejoin {record.id}")
        if record.limits_due:
            self._updating.settle_later(record)

    def take_down(self, record: SandboxRecord, why: str, after: asyncio.Event) -> None:
        """Deletes a sandbox of an earlier daemon, after an event. Until then it is there, and its id is taken."""
        self._know(record)
        self._endings.delete(record, why, Cause.DAEMON, after=after)

    def _know(self, record: SandboxRecord) -> None:
        self._records[record.id] = record
        self._creation.know(record)
        self._boot.take_up(record)

    async def finish_stop(self, record: SandboxRecord) -> None:
        """Brings the stop to its end that an earlier daemon has begun, now that the guest is there."""
        await self._switching.finish_later(record)

    async def closes_within(self, seconds: float) -> bool:
        """Waits for the end of the daemon, for so long at most; whether it came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        return self._closing.is_set()

    def leave(self) -> None:
        """Takes no new sandboxes and leaves those there are to the next daemon on this state directory."""
        self._closing.set()
        for record in self._records.values():
            self._unwatch(record)
            record.stop_clocks()
            if record.link is not None:
                record.link.leave()

    async def close(self, deadline_s: float) -> None:
        """Takes no new sandboxes and removes those there are, within a deadline."""
        self._closing.set()
        records = list(self._records.values())
        for record in records:
            self._endings.delete(record, "the daemon was stopped", Cause.DAEMON)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(record.gone.wait() for record in records))
        for record in self._records.values():
            log.error("sandbox left behind", extra={"sandbox_id": record.id, "reason": record.state_reason})
