"""What one identity may have and do at a time, as its role says. What all together may is the daemon's own business."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from enclaved.core import identity
from enclaved.core.policy import Policy
from enclaved.core.rates import Rates
from enclaved.core.record import SandboxRecord
from enclaved.errors import LimitReached
from enclaved.metrics import Metrics
from enclaved.model import Identity, SandboxState


class Quotas:
    """Refuses what would be more than the role of whoever calls allows. Raises `LimitReached`, which says when again.

    A sandbox counts for whoever made it, or claimed it; an execution for whoever the sandbox counts for. The members of
    a pool count for whoever made the pool.
    """

    def __init__(
        self,
        policy: Policy,
        records: Callable[[], Iterable[SandboxRecord]],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._records, self._metrics = policy, records, metrics
        self._creates, self._executions = Rates(clock), Rates(clock)

    def check_sandboxes(self, count: int) -> None:
        """Looks whether the caller may have so many more sandboxes now."""
        who = identity.current()
        most = self._policy.role(who).limits.sandboxes_max
        if most >= self._policy.limits.sandboxes_max:
            return  # the daemon's own limit, which is checked for everybody, comes first
        now = sum(each.owner == who.name and each.state is not SandboxState.DELETING for each in self._records())
        if now + count > most:
            text = f"you have {now} sandboxes, and {count} more would be more than your limit (sandboxes_max {most})"
            self._refuse(who, "sandboxes_max", f"{text}; delete some, or try again later")

    def take_create(self, count: int = 1) -> None:
        """Counts sandboxes that are about to be made. More than a minute's take the turns of a minute."""
        who = identity.current()
        most = self._policy.role(who).limits.creates_per_minute
        wait_s = self._creates.take(who.name, most, count)
        if wait_s:
            text = f"you may make {most} sandboxes in a minute (creates_per_minute)"
            self._refuse(who, "creates_per_minute", f"{text}; try again in {wait_s:.1f} s", wait_s)

    def take_execution(self, record: SandboxRecord) -> None:
        """Counts an execution that is about to start in a sandbox."""
        who = identity.current()
        limits = self._policy.role(who).limits
        most = limits.executions_per_sandbox_max
        if record.active_executions >= most:
            text = f"sandbox {record.id!r} runs {most} executions already, your limit; wait for some to end"
            self._refuse(who, "executions_per_sandbox_max", text)
        most = limits.executions_max
        if most and sum(each.active_executions for each in self._records() if each.owner == record.owner) >= most:
            text = f"your sandboxes run {most} executions already, your limit (executions_max); wait for some to end"
            self._refuse(who, "executions_max", text)
        most = limits.executions_per_minute
        wait_s = self._executions.take(who.name, most)
        if wait_s:
            text = f"you may start {most} executions in a minute (executions_per_minute)"
            self._refuse(who, "executions_per_minute", f"{text}; try again in {wait_s:.1f} s", wait_s)

    def _refuse(self, who: Identity, limit: str, text: str, wait_s: float = 1.0) -> NoReturn:
        self._metrics.access.quota_refused(limit)
        raise LimitReached(f"identity/{who.name}", limit, text, wait_s)
