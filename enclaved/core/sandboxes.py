"""All sandboxes of this daemon: create, look, start, stop, delete, and their end by age."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import secrets
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.ownership import Ownership, abandoned, remove_state
from enclaved.core.policy import Policy, check_id, check_labels
from enclaved.core.record import SandboxRecord
from enclaved.errors import (
    EnclaveError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    PolicyDenied,
    SandboxExists,
    SandboxLost,
    SandboxNotFound,
    ShuttingDown,
    WrongState,
)
from enclaved.metrics import Metrics
from enclaved.model import EMPTY, Sandbox, SandboxPage, SandboxRequest, SandboxState, ToolDescription
from enclaved.runtime.base import LABEL_ID, LABEL_OWNER, Runtime
from enclaved.tools.registry import ToolRegistry

log = logging.getLogger(__name__)

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
REMOVALS_AT_ONCE = 8
RETRY_S = 2.0
LATE_S = 60.0
"""How long an engine may take to make a container."""


class Sandboxes:
    """Owns every sandbox from its admission until it is forgotten."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        boot: Boot,
        policy: Policy,
        tools: ToolRegistry,
        ownership: Ownership,
        background: Background,
        metrics: Metrics,
    ) -> None:
        self._runtime, self._boot, self._policy, self._tools = runtime, boot, policy, tools
        self._ownership, self._background, self._metrics = ownership, background, metrics
        self._records: dict[str, SandboxRecord] = {}
        self._count = 0
        self._closing = asyncio.Event()

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
        if not 0 <= page_size <= PAGE_SIZE_MAX:
            raise InvalidRequest.of("page_size", f"must be from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
        query = zlib.crc32(repr((sorted(labels.items()), sorted(states))).encode())
        after = _after(page_token, query)
        found = [
            record
            for record in self._records.values()
            if record.number > after
            and (not states or record.state in states)
            and all(record.labels.get(name) == value for name, value in labels.items())
        ]
        page = found[: page_size or PAGE_SIZE_DEFAULT]
        token = f"{page[-1].number}-{query:x}" if len(found) > len(page) else ""
        return SandboxPage(tuple(record.snapshot() for record in page), token)

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
        self, request: SandboxRequest, *, sandbox_id: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Sandbox:
        """Admits, makes and starts a sandbox; a caller that goes away meanwhile gets none.

        Raises `InvalidRequest`, `PolicyDenied`, `SandboxExists`, `LimitReached`, and what `Runtime` raises.
        """
        try:
            sandbox = await self._create(request, sandbox_id, labels)
        except BaseException as error:
            self._metrics.sandbox_created(error)
            raise
        self._metrics.sandbox_created()
        return sandbox

    async def _create(self, request: SandboxRequest, sandbox_id: str, labels: Mapping[str, str]) -> Sandbox:
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
        )
        self._records[sandbox_id] = record
        try:
            async with record.lock:
                await self._start(record)
        except BaseException as error:
            if record.container_id is None:
                self._forget(record)
            else:  # what was made could not be removed yet; the id stays taken until it is
                record.enter(SandboxState.ERROR, f"it could not be created: {error}")
                self._background.spawn(self._delete_for_certain(record), f"undo {record.id}")
            raise
        loop = asyncio.get_running_loop()
        record.expiry = loop.call_later(record.spec.ttl_s, self._expire, record, context=contextvars.Context())
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
        age_s = (asyncio.get_running_loop().time() - record.born) if record.born else 0.0
        record.born = record.born or asyncio.get_running_loop().time()
        record.enter(SandboxState.INITIALIZING)
        await self._boot.up(record, max(1.0, record.spec.ttl_s - age_s))
        self._run(record)

    def _run(self, record: SandboxRecord) -> None:
        record.enter(SandboxState.RUNNING)
        record.watcher = self._background.spawn(self._boot.watch(record, self.lose), f"watch {record.id}")

    async def start(self, sandbox_id: str) -> Sandbox:
        """Starts a stopped sandbox again. Raises `WrongState` if it was lost, `SandboxNotFound`."""
        record = self.record(sandbox_id)
        async with record.lock:
            self._still_known(record)
            if self._closing.is_set():
                raise ShuttingDown
            if record.state is SandboxState.STOPPED:
                if record.container_id is not None:
                    self._run(record)
                else:
                    try:
                        await self._start(record)
                    except BaseException as error:
                        if record.container_id is None:
                            record.enter(SandboxState.STOPPED, "it could not be started again")
                        else:  # what was made could not be removed yet
                            self._give_up(record, f"it could not be started again: {error}")
                        raise
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
            if record.state is SandboxState.RUNNING:
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
            self._give_up(record, f"it could not be stopped: {error}")
            raise
        record.enter(SandboxState.STOPPED, "stopped on request")
        log.info("sandbox stopped", extra={"sandbox_id": record.id})

    async def delete(self, sandbox_id: str) -> None:
        """Kills and removes a sandbox. Raises `SandboxNotFound`, `EngineUnavailable` (it can be tried again)."""
        record = self.record(sandbox_id)
        await self._background.finish(self._delete(record), f"delete {sandbox_id}")

    async def _delete(self, record: SandboxRecord) -> None:
        async with record.lock:
            self._still_known(record)
            await self._delete_known(record)

    async def _delete_known(self, record: SandboxRecord) -> None:
        record.enter(SandboxState.STOPPING)
        self._stop_watching(record)
        try:
            await self._take_down(record, "it was deleted")
        except EnclaveError as error:
            record.enter(SandboxState.ERROR, f"it could not be deleted: {error}")
            raise
        self._forget(record)
        log.info("sandbox deleted", extra={"sandbox_id": record.id})

    async def _take_down(self, record: SandboxRecord, why: str) -> None:
        if record.link is not None:
            record.link.fail(SandboxLost(record.id, why))
        await self._boot.down(record)

    def lose(self, record: SandboxRecord, why: str) -> None:
        """Gives a sandbox up: its executions are lost, its container goes, its record says why."""
        if record.state is not SandboxState.RUNNING:
            return
        self._give_up(record, why)

    def _give_up(self, record: SandboxRecord, why: str) -> None:
        log.error("sandbox lost", extra={"sandbox_id": record.id, "reason": why})
        record.enter(SandboxState.ERROR, why)
        if record.link is not None:
            record.link.fail(SandboxLost(record.id, why))
        self._background.spawn(self._clear(record), f"clear {record.id}")

    async def _clear(self, record: SandboxRecord) -> None:
        while record.container_id is not None:
            try:
                async with record.lock:
                    await self._boot.down(record)
            except EngineUnavailable:
                await asyncio.sleep(RETRY_S)

    def _expire(self, record: SandboxRecord) -> None:
        log.info("sandbox expired", extra={"sandbox_id": record.id, "ttl_s": record.spec.ttl_s})
        self._background.spawn(self._delete_for_certain(record), f"expire {record.id}")

    async def _delete_for_certain(self, record: SandboxRecord) -> None:
        while self._records.get(record.id) is record:
            try:
                await self.delete(record.id)
            except EngineUnavailable:
                await asyncio.sleep(RETRY_S)
            except SandboxNotFound:
                return

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
            self._boot.return_uid(record.uid)

    # -- beginning and end of the daemon

    async def keep_clear(self, state_dir: Path, embedded_base: Path | None) -> None:
        """Clears leftovers, and again after a while: engines go on with what a daemon wanted that was then killed."""
        await self.clear_leftovers(state_dir, embedded_base)
        if not await self._closes_within(LATE_S):
            await self.clear_leftovers(state_dir, embedded_base)

    async def clear_leftovers(self, state_dir: Path, embedded_base: Path | None) -> None:
        """Removes what an earlier daemon on this state directory left, and what dead embedded daemons left.

        Waits for the engine for as long as it takes, but no longer than until `close`.
        """
        complete = False
        while not complete:
            try:
                complete = await self._remove_owned(self._ownership)
                await asyncio.to_thread(self._boot.remove_old_directories)
                if embedded_base is not None:
                    for directory, ownership in abandoned(embedded_base, state_dir):
                        await self._remove_owned(ownership)
                        await asyncio.to_thread(remove_state, directory)
            except EngineUnavailable as error:
                self._metrics.engine_up(False)
                log.warning("the engine does not answer", extra={"reason": str(error)})
            if not complete and await self._closes_within(RETRY_S):
                return

    async def _closes_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        return self._closing.is_set()

    async def _remove_owned(self, ownership: Ownership) -> bool:
        """Removes containers that are provably this owner's and of no sandbox; False if one must be seen again."""
        containers = await self._runtime.list_records()
        complete = True
        for container in containers:
            if container.labels.get(LABEL_OWNER) != ownership.owner:
                continue
            if not ownership.proves(container.labels):
                log.warning("a container imitates our labels", extra={"container_id": container.id})
                continue
            record = self._records.get(container.labels.get(LABEL_ID, ""))
            if record is not None and record.container_id is None and record.state is SandboxState.INITIALIZING:
                complete = False  # it may be the one that is being made at this moment
            elif record is None or record.container_id != container.id:
                await self._runtime.remove(container.id)
                log.info("leftover removed", extra={"container_id": container.id})
        self._metrics.engine_up(True)
        return complete

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


def _after(page_token: str, query: int) -> int:
    if not page_token:
        return 0
    number, _, seen = page_token.partition("-")
    if not number.isascii() or not number.isdigit() or len(number) > 18 or seen != f"{query:x}":
        raise InvalidRequest.of("page_token", "not a token of this listing; use next_page_token with the same filters")
    return int(number)
