"""Changes of sandboxes that live: their time to live, idle timeout, labels and limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from enclaved.agent.versions import needed_for_frame
from enclaved.core import identity
from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.changes import Changes
from enclaved.core.policy import Policy, check_labels
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError, EngineUnavailable, WrongState
from enclaved.model import Cause, SandboxSpec, SandboxState, SandboxUpdate

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0
LIMITS: Final = ("memory_limit_bytes", "cpu_limit", "pids_limit")


class Updating:
    """Changes sandboxes. ``renewed`` is told of one that has another time to live or idle timeout."""

    def __init__(
        self,
        *,
        boot: Boot,
        policy: Policy,
        background: Background,
        changes: Changes,
        renewed: Callable[[SandboxRecord], None],
    ) -> None:
        self._boot, self._policy, self._background = boot, policy, background
        self._changes, self._renewed = changes, renewed

    async def update(self, record: SandboxRecord, update: SandboxUpdate) -> None:
        """Changes a sandbox, whose lock the caller holds: all that is asked for, or nothing.

        Raises `InvalidRequest`, `PolicyDenied`, `WrongState`, `NoSpace`, `EngineUnavailable`, `EngineRefused`.
        """
        if update == SandboxUpdate():
            return
        if update.labels is not None:
            check_labels(update.labels)
        if record.pool_id:
            pool = f"is a member of pool {record.pool_id!r}; change the pool, or claim the sandbox"
            text = f"sandbox {record.id!r} {pool}"
            raise WrongState(f"sandbox/{record.id}", record.state.value, "no member of a pool", text)
        granted = self._policy.change(record.spec, update, identity.current())
        limited = any(getattr(update, name) is not None for name in LIMITS)
        if record.state is SandboxState.DELETING or (limited and record.state is SandboxState.ERROR):
            text = f"sandbox {record.id!r} is {record.state.value}: {record.state_reason}; delete it, or create another"
            raise WrongState(f"sandbox/{record.id}", record.state.value, SandboxState.RUNNING.value, text)
        if update.ttl_s is not None:
            age_s = asyncio.get_running_loop().time() - record.born
            granted = replace(granted, ttl_s=age_s + update.ttl_s)
            if record.link is not None and granted.ttl_s > record.spec.ttl_s:  # the guest would end all the same
                record.link.check_version(needed_for_frame("expire"), "cannot be told to live longer")
        before, due_before = (record.spec, record.labels), record.limits_due
        record.spec = granted
        record.labels = record.labels if update.labels is None else dict(update.labels)
        record.limits_due = record.limits_due or (limited and record.container_id is not None)
        try:
            if limited:
                self._changes.keep(record)
            else:
                self._changes.save(record, Cause.REQUEST)
        except EnclaveError:
            record.spec, record.labels = before
            record.limits_due = due_before
            raise
        if limited:
            await self._limit(record, before)
        if update.ttl_s is not None or update.idle_timeout_s is not None:
            self._renewed(record)
        if update.ttl_s is not None:
            self._boot.tell_expiry(record)
        log.info("sandbox updated", extra={"sandbox_id": record.id, "ttl_s": update.ttl_s, "limits": limited})

    async def hand_over(self, record: SandboxRecord, update: SandboxUpdate, request_id: str, digest: str) -> None:
        """Makes a member of a pool, whose lock the caller holds, a sandbox of somebody's own that lives anew.

        ``update`` has a time to live. One write says all of it, so that a daemon that is killed leaves it on the one
        side or on the other. Raises as `update`, and `WrongState` for one that does not run; then it is the pool's as
        it was before.
        """
        before = record.pool_id, record.request_id, record.request_digest, record.owner
        self._check_runs(record)
        owner = identity.current().name
        record.pool_id, record.request_id, record.request_digest, record.owner = "", request_id, digest, owner
        try:
            record.touch()
            await self.update(record, update)
            self._check_runs(record)  # it may have been lost while the engine was asked
        except BaseException:
            record.pool_id, record.request_id, record.request_digest, record.owner = before
            if not record.is_forgotten:
                self._changes.settled(record)
            raise

    @staticmethod
    def _check_runs(record: SandboxRecord) -> None:
        if record.state is not SandboxState.RUNNING:
            text = f"sandbox {record.id!r} is {record.state.value}: {record.state_reason}"
            raise WrongState(f"sandbox/{record.id}", record.state.value, SandboxState.RUNNING.value, text)

    async def _limit(self, record: SandboxRecord, before: tuple[SandboxSpec, Mapping[str, str]]) -> None:
        """Brings new limits to the engine, or takes everything back."""
        try:
            await self._boot.limit(record)
        except EnclaveError as error:
            record.spec, record.labels = before
            # An engine that did not answer may have heard of it.
            record.limits_due = isinstance(error, EngineUnavailable)
            self._changes.settled(record)
            if record.limits_due:
                self.settle_later(record)
            raise
        record.limits_due = False
        self._changes.note(record, Cause.REQUEST)

    def settle_later(self, record: SandboxRecord) -> None:
        """Gives the engine the limits of a sandbox that it may not have heard of, as soon as it answers."""
        self._background.spawn(self._settle(record), f"limit {record.id}")

    async def _settle(self, record: SandboxRecord) -> None:
        while not record.is_forgotten:
            async with record.lock:
                if not record.limits_due or record.container_id is None or record.state is SandboxState.DELETING:
                    return
                try:
                    await self._boot.limit(record)
                except EngineUnavailable:
                    pass
                except EnclaveError as error:  # more memory is in use, for example: the container keeps what it has
                    log.warning("limits not applied", extra={"sandbox_id": record.id, "reason": str(error)})
                    return
                else:
                    record.limits_due = False
                    self._changes.note(record, Cause.DAEMON)
                    return
            await asyncio.sleep(RETRY_S)
