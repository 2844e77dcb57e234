"""Pools and their members."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from enclaved.model import LeaseKind, MemberState, ResetOutcome

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0)


class PoolMetrics:
    """Members of pools, who waits for them, and how they become ready again."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._members = Gauge("enclaved_pool_members", "Members of pools by state.", ("state",), registry=registry)
        self._waiting = Gauge(
            "enclaved_pool_waiting", "Calls that wait for a free member of a pool.", registry=registry
        )
        self._resets = Counter(
            "enclaved_pool_resets", "Resets of members of pools by outcome.", ("outcome",), registry=registry
        )
        self._leases = Counter(
            "enclaved_pool_leases", "Members of pools that were lent, by what for.", ("kind",), registry=registry
        )
        self._wait_seconds = Histogram(
            "enclaved_pool_wait_seconds",
            "Time that callers waited for a member of a pool.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._reset_seconds = Histogram(
            "enclaved_pool_reset_seconds",
            "Time from the end of a call in a pool until its member was ready again.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._troubled = Gauge("enclaved_pools_troubled", "Pools whose members cannot be made now.", registry=registry)
        self._refused = Gauge(
            "enclaved_pools_refused", "Mistakes in the operator's definitions of pools.", registry=registry
        )
        for state in MemberState:
            self._members.labels(state.value)
        for reset in ResetOutcome:
            self._resets.labels(reset.value)
        for lease in LeaseKind:
            self._leases.labels(lease.value)

    def member_moved(self, before: MemberState | None, after: MemberState | None) -> None:
        """Moves one member of a pool from state to state; ``None`` before it is there and after it is gone."""
        if before is not None:
            self._members.labels(before.value).dec()
        if after is not None:
            self._members.labels(after.value).inc()

    def waiting(self, change: int) -> None:
        """Counts calls that begin (1) or end (-1) to wait for a member of a pool."""
        self._waiting.inc(change)

    def reset(self, outcome: ResetOutcome, seconds: float | None = None) -> None:
        """Counts one reset of a member of a pool, and times it."""
        self._resets.labels(outcome.value).inc()
        if seconds is not None:
            self._reset_seconds.observe(seconds)

    def lent(self, kind: LeaseKind, waited_s: float) -> None:
        """Counts a member that was lent, and how long its caller waited for it."""
        self._leases.labels(kind.value).inc()
        self._wait_seconds.observe(waited_s)

    def troubled(self, change: int) -> None:
        """Counts a pool whose members cannot be made (1), or can be made again (-1)."""
        self._troubled.inc(change)

    def refused(self, count: int) -> None:
        """Says how many mistakes the operator's definitions of pools have."""
        self._refused.set(count)
