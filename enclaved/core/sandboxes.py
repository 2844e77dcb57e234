"""All sandboxes of this daemon: create, look, start, stop, delete, and their end by age."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.endings import Endings
from enclaved.core.listing import page_of
from enclaved.core.pausing import Pausing
from enclaved.core.policy import Policy, check_id, check_labels
from enclaved.core.record import SandboxRecord
from enclaved.core.state import SandboxTable
from enclaved.core.updating import Updating
from enclaved.errors import (
    EnclaveError,
    LimitReached,
    PolicyDenied,
    SandboxExists,
    SandboxLost,
    SandboxNotFound,
    ShuttingDown,
    WrongState,
)
from enclaved.metrics import Metrics
from enclaved.model import EMPTY, Sandbox, SandboxPage, SandboxRequest, SandboxState, SandboxUpdate, ToolDescription
from enclaved.tools.registry import ToolRegistry

log = logging.getLogger(__name__)

REMOVALS_AT_ONCE = 8


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
        self._boot, self._policy, self._tools = boot, policy, tools
        self._background, self._metrics, self._table = background, metrics, table
        self._records: dict[str, SandboxRecord] = {}
        self._count = 0
        self._closing = asyncio.Event()
        self._pausing = Pausing(boot, self._enter)
        self._endings = Endings(
            boot=boot, background=background, table=table, known=self.known, enter=self._enter, delete=self.delete
        )
        self._updating = Updating(boot=boot, policy=policy, table=table, renewed=self._endings.expire_later)

    # -- looking

    def record(self, sandbox_id: str) -> SandboxRecord:
        """Finds a sandbox. Raises `SandboxNotFound`, also for what cannot be an id."""
        record = self._records.get(sandbox_id)
        if record is None:
            raise SandboxNotFound(sandbox_id[:64])
        return record

    def get(self, sandbox_id: str) -> Sandbox:
        """Shows a sandbox. Raises `SandboxNotFound`."""
        return self.record(sandbox_id).snapshot()

    def list(
        self,
        *,
        labels: Mapping[str, str] = EMPTY,
        states: Collection[SandboxState] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> SandboxPage:
        """Lists sandboxes, oldest first, a page at a time. Raises `InvalidRequest` for a bad size or token."""
        return page_of(self._records.values(), labels=labels, states=states, page_size=page_size, page_token=page_token)

    def tools(self, sandbox_id: str = "") -> tuple[ToolDescription, ...]:
        """Lists the tools of a sandbox, or all of the daemon. Raises `SandboxNotFound`."""
        enabled = self.record(sandbox_id).spec.tools if sandbox_id else None
        return self._tools.descriptions(enabled)

    @property
    def active(self) -> int:
        """Sandboxes that use the engine or are about to."""
        idle = (SandboxState.STOPPED, SandboxState.ERROR)
        return sum(record.state not in idle for record in self._records.values())

    # -- changing

    async def create(
        self, request: SandboxRequest, *, sandbox_id: str = "", labels: Mapping[str, str] = EMPTY, pool_id: str = ""
    ) -> Sandbox:
        """Admits, makes and starts a sandbox; a caller that goes away meanwhile gets none.

        ``pool_id`` names the pool that it becomes a member of. Raises `InvalidRequest`, `PolicyDenied`,
        `SandboxExists`, `LimitReached`, `NoSpace`, and what `Runtime` raises.
        """
        try:
            sandbox = await self._create(request, sandbox_id, labels, pool_id)
        except BaseException as error:
            self._metrics.sandbox_created(error)
            raise
        self._metrics.sandbox_created()
        return sandbox

    async def _create(
        self, request: SandboxRequest, sandbox_id: str, labels: Mapping[str, str], pool_id: str
    ) -> Sandbox:
        if self._closing.is_set():
            raise ShuttingDown
        if sandbox_id:
            check_id(sandbox_id)
        check_labels(labels)
        admission = self._policy.admit(request)
        sandbox_id = sandbox_id or self._new_id()
        if sandbox_id in self._records:
            raise SandboxExists(sandbox_id)
        self._check_room(1)
        self._count += 1
        record = SandboxRecord(
            id=sandbox_id,
            number=self._count,
            spec=admission.spec,
            adjustments=admission.adjustments,
            labels=dict(labels),
            uid=self._boot.take_uid(),
            directory=self._boot.new_directory(),
            metrics=self._metrics,
            pool_id=pool_id,
            born=asyncio.get_running_loop().time(),
        )
        self._records[sandbox_id] = record
        try:
            async with record.lock:
                self._table.save(record.row())
                await self._start(record)
                self._table.save(record.row())
        except BaseException as error:
            if record.container_id is None:
                self._forget(record)
            else:  # what was made could not be removed yet; the id stays taken until it is
                self._enter(record, SandboxState.ERROR, f"it could not be created: {error}")
                self._endings.delete_later(record, "undo")
            raise
        self._endings.expire_later(record)
        log.info("sandbox created", extra={"sandbox_id": sandbox_id, "image": record.spec.image})
        return record.snapshot()

    def check_room(self, count: int, field: str) -> None:
        """Looks before ``count`` sandboxes are made whether there may be so many.

        Raises `PolicyDenied` if never (naming the field that asks for them), `LimitReached` if not now.
        """
        most = self._policy.limits.sandboxes_max
        if count > most:
            text = f"{field} is {count}, and this daemon has at most {most} sandboxes; ask for less"
            raise PolicyDenied("resources", field, text, limit=str(most))
        self._check_room(count)

    def _check_room(self, count: int) -> None:
        most, now = self._policy.limits.sandboxes_max, len(self._records)
        if now + count > most:
            has = f"{most} sandboxes already" if now >= most else f"{now} sandboxes, and {count} more would be too many"
            text = f"the daemon has {has}, its limit (sandboxes_max {most}); delete some, or try again later"
            raise LimitReached("daemon", "sandboxes_max", text)

    def _new_id(self) -> str:
        while (sandbox_id := secrets.token_hex(6)) in self._records:
            pass
        return sandbox_id

    async def _start(self, record: SandboxRecord) -> None:
        age_s = asyncio.get_running_loop().time() - record.born
        record.enter(SandboxState.INITIALIZING)
        await self._boot.up(record, max(1.0, record.spec.ttl_s - age_s))
        self._run(record)

    def _run(self, record: SandboxRecord) -> None:
        record.enter(SandboxState.RUNNING)
        self._stop_watching(record)
        watch = self._boot.watching.watch(record, self.lose, self.seen)
        record.watcher = self._background.spawn(watch, f"watch {record.id}")

    async def start(self, sandbox_id: str) -> Sandbox:
        """Starts a stopped sandbox again, and resumes a paused one.

        Raises `WrongState` if it was lost, `SandboxNotFound`, `NoSpace`.
        """
        record = self.record(sandbox_id)
        async with record.lock:
            self._still_known(record)
            if self._closing.is_set():
                raise ShuttingDown
            if record.state is SandboxState.STOPPED:
                # A daemon that is killed meanwhile leaves it stopped. On a full disk it must not start at all.
                self._table.save(record.row())
                if record.container_id is not None:
                    self._run(record)
                else:
                    try:
                        await self._start(record)
                    except BaseException as error:
                        if record.container_id is None:
                            record.enter(SandboxState.STOPPED, "it could not be started again")
                        else:  # what was made could not be removed yet
                            self._endings.give_up(record, f"it could not be started again: {error}")
                        raise
                self._table.note(record.row())
            elif record.state is SandboxState.PAUSED:
                await self._pausing.resume(record)
            elif record.state is not SandboxState.RUNNING:
                text = f"sandbox {sandbox_id!r} is {record.state.value}: {record.state_reason}; delete it"
                raise WrongState(f"sandbox/{sandbox_id}", record.state.value, SandboxState.STOPPED.value, text)
            return record.snapshot()

    async def stop(self, sandbox_id: str) -> Sandbox:
        """Kills everything in a sandbox at once. Keeps files and container only without ``remove_on_exit``."""
        record = self.record(sandbox_id)
        # With the lock inside: whoever waits for it must find the work done, also when its caller has left.
        await self._background.finish(self._stop(record), f"stop {sandbox_id}")
        return record.snapshot()

    async def _stop(self, record: SandboxRecord) -> None:
        async with record.lock:
            self._still_known(record)
            if record.state is SandboxState.PAUSED and not record.spec.remove_on_exit:
                await self._pausing.resume(record)  # its guest is to end what runs
            if record.state in (SandboxState.RUNNING, SandboxState.PAUSED):
                await self._stop_running(record)

    async def _stop_running(self, record: SandboxRecord) -> None:
        record.enter(SandboxState.STOPPING)
        self._stop_watching(record)
        try:
            if record.spec.remove_on_exit or record.link is None:
                await self._take_down(record, "it was stopped")
            else:
                await record.link.park()
        except EnclaveError as error:
            self._endings.give_up(record, f"it could not be stopped: {error}")
            raise
        self._enter(record, SandboxState.STOPPED, "stopped on request")
        log.info("sandbox stopped", extra={"sandbox_id": record.id})

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
        return record

    async def _changed(self, sandbox_id: str, change: Callable[[SandboxRecord], Coroutine[Any, Any, None]]) -> Sandbox:
        """Changes a sandbox under its lock, to the end even if the caller leaves."""
        record = self.record(sandbox_id)

        async def locked() -> None:
            async with record.lock:
                self._still_known(record)
                await change(record)

        await self._background.finish(locked(), f"change {sandbox_id}")
        return record.snapshot()

    async def update(self, sandbox_id: str, update: SandboxUpdate) -> Sandbox:
        """Changes a sandbox: all that is asked for, or nothing. Raises `SandboxNotFound`, and as `Updating.update`."""
        return await self._changed(sandbox_id, lambda record: self._updating.update(record, update))

    def seen(self, record: SandboxRecord, paused: bool) -> None:
        """Somebody looked at the container of a sandbox. See `Pausing.seen`."""
        self._pausing.seen(record, paused)

    async def delete(self, sandbox_id: str) -> None:
        """Kills and removes a sandbox. Raises `SandboxNotFound`, `EngineUnavailable` (it can be tried again)."""
        record = self.record(sandbox_id)
        await self._background.finish(self._delete(record), f"delete {sandbox_id}")

    async def _delete(self, record: SandboxRecord) -> None:
        async with record.lock:
            self._still_known(record)
            await self._delete_known(record)

    async def _delete_known(self, record: SandboxRecord) -> None:
        self._enter(record, SandboxState.STOPPING)
        self._stop_watching(record)
        try:
            await self._take_down(record, "it was deleted")
        except EnclaveError as error:
            self._enter(record, SandboxState.ERROR, f"it could not be deleted: {error}")
            raise
        self._forget(record)
        log.info("sandbox deleted", extra={"sandbox_id": record.id})

    async def _take_down(self, record: SandboxRecord, why: str) -> None:
        if record.link is not None:
            record.link.fail(SandboxLost(record.id, why))
        await self._boot.down(record)

    def lose(self, record: SandboxRecord, why: str) -> None:
        """Gives a sandbox up: its executions are lost, its container goes, its record says why."""
        if record.state in (SandboxState.RUNNING, SandboxState.PAUSED) or (
            record.state is SandboxState.STOPPED and record.container_id is not None
        ):
            self._endings.give_up(record, why)

    def _enter(self, record: SandboxRecord, state: SandboxState, reason: str = "") -> None:
        """Changes the state, and writes it down."""
        record.enter(state, reason)
        self._table.note(record.row())

    def _still_known(self, record: SandboxRecord) -> None:
        if self._records.get(record.id) is not record:
            raise SandboxNotFound(record.id)

    @staticmethod
    def _stop_watching(record: SandboxRecord) -> None:
        if record.watcher is not None:
            record.watcher.cancel()
            record.watcher = None

    def _forget(self, record: SandboxRecord) -> None:
        if self._records.pop(record.id, None) is not None:
            record.forgotten()
            self._table.forget(record.id, record.number)
            self._boot.return_uid(record.uid)

    # -- beginning and end of the daemon

    @property
    def records(self) -> Collection[SandboxRecord]:
        """Every sandbox that is known, also one that is being made or removed."""
        return self._records.values()

    def known(self, sandbox_id: str) -> SandboxRecord | None:
        """Finds a sandbox, if there is one."""
        return self._records.get(sandbox_id)

    def with_containers(self) -> tuple[SandboxRecord, ...]:
        """Lists the sandboxes whose containers run unless somebody else ended them."""
        states = (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED)
        return tuple(one for one in self._records.values() if one.container_id and one.state in states)

    def take_up(self, record: SandboxRecord, rejoin: Callable[[SandboxRecord], Coroutine[Any, Any, None]]) -> None:
        """Goes on with a sandbox of an earlier daemon. ``rejoin`` brings its guest back, if there is to be one."""
        self._records[record.id] = record
        self._count = max(self._count, record.number)
        self._boot.take_up(record)
        self._endings.expire_later(record)
        if record.state is SandboxState.ERROR:
            self._endings.clear_later(record)
        elif record.container_id is not None:
            record.watcher = self._background.spawn(rejoin(record), f"rejoin {record.id}")

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
            self._stop_watching(record)
            if record.expiry is not None:
                record.expiry.cancel()
            if record.link is not None:
                record.link.leave()

    async def close(self, deadline_s: float) -> None:
        """Takes no new sandboxes and removes those there are, within a deadline."""
        self._closing.set()
        gate = asyncio.Semaphore(REMOVALS_AT_ONCE)

        async def remove(record: SandboxRecord) -> None:
            async with gate:
                try:
                    await self.delete(record.id)
                except EnclaveError as error:
                    log.error("sandbox left behind", extra={"sandbox_id": record.id, "reason": str(error)})

        removals = [self._background.spawn(remove(record), "remove") for record in self._records.values()]
        if removals:
            await asyncio.wait(removals, timeout=deadline_s)
