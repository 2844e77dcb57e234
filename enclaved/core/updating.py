"""Changes of sandboxes that live: their time to live, labels and limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from enclaved.agent.versions import needed_for_frame
from enclaved.core.boot import Boot
from enclaved.core.policy import Policy, check_labels
from enclaved.core.record import SandboxRecord
from enclaved.core.state import SandboxTable
from enclaved.errors import EnclaveError, WrongState
from enclaved.model import SandboxState, SandboxUpdate

log = logging.getLogger(__name__)

LIMITS: Final = ("memory_limit_bytes", "cpu_limit", "pids_limit")


class Updating:
    """Changes sandboxes. ``renewed`` is told of one that has another time to live."""

    def __init__(
        self, *, boot: Boot, policy: Policy, table: SandboxTable, renewed: Callable[[SandboxRecord], None]
    ) -> None:
        self._boot, self._policy, self._table, self._renewed = boot, policy, table, renewed

    async def update(self, record: SandboxRecord, update: SandboxUpdate) -> None:
        """Changes a sandbox, whose lock the caller holds: all that is asked for, or nothing.

        Raises `InvalidRequest`, `PolicyDenied`, `WrongState`, `NoSpace`, `EngineUnavailable`, `EngineRefused`.
        """
        if update.labels is not None:
            check_labels(update.labels)
        granted = self._policy.change(record.spec, update)
        limited = any(getattr(update, name) is not None for name in LIMITS)
        if limited and record.state is SandboxState.ERROR:
            text = f"sandbox {record.id!r} is {record.state.value}: {record.state_reason}; delete it"
            raise WrongState(f"sandbox/{record.id}", record.state.value, SandboxState.RUNNING.value, text)
        if update.ttl_s is not None:
            age_s = asyncio.get_running_loop().time() - record.born
            granted = replace(granted, ttl_s=age_s + update.ttl_s)
            if record.link is not None and granted.ttl_s > record.spec.ttl_s:  # the guest would end all the same
                record.link.check_version(needed_for_frame("expire"), "cannot be told to live longer")
        before = record.spec, record.labels
        record.spec = granted
        record.labels = record.labels if update.labels is None else dict(update.labels)
        try:
            self._table.save(record.row())
            if limited:
                await self._boot.limit(record)
        except EnclaveError:
            record.spec, record.labels = before
            self._table.note(record.row())
            raise
        if update.ttl_s is not None:
            self._renewed(record)
            self._boot.tell_expiry(record)
        log.info("sandbox updated", extra={"sandbox_id": record.id, "ttl_s": update.ttl_s, "limits": limited})
