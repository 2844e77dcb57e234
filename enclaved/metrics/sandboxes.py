"""Sandboxes, from their creation to their end."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from enclaved.metrics.labels import outcome
from enclaved.model import Cause, RecoveryOutcome, SandboxState


class SandboxMetrics:
    """States, creations and ends of sandboxes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._states = Gauge("enclaved_sandboxes", "Sandboxes by state.", ("state",), registry=registry)
        self._created = Counter(
            "enclaved_sandboxes_created", "Creations of sandboxes by outcome.", ("outcome",), registry=registry
        )
        self._ended = Counter(
            "enclaved_sandboxes_ended",
            "Sandboxes that could be used and came to their end, by what ended them.",
            ("cause",),
            registry=registry,
        )
        self._watches = Gauge(
            "enclaved_sandbox_watches", "Clients that watch the changes of sandboxes now.", registry=registry
        )
        self._recovered = Counter(
            "enclaved_sandboxes_recovered",
            "Sandboxes of an earlier daemon by what became of them.",
            ("outcome",),
            registry=registry,
        )
        self._drained = Counter(
            "enclaved_sandboxes_drained",
            "Sandboxes of an earlier daemon that took no new work since their guest was too old.",
            registry=registry,
        )
        self._drifts = Counter(
            "enclaved_sandbox_drifts", "Sandboxes ended since their container changed.", registry=registry
        )
        for state in SandboxState:
            self._states.labels(state.value)
        # Counters that are there from the start: Prometheus sees no increase in a series that begins with 1.
        for created in ("ok", "limit_reached"):
            self._created.labels(created)
        for cause in Cause:
            self._ended.labels(cause.value)
        for recovery in RecoveryOutcome:
            self._recovered.labels(recovery.value)

    def moved(self, before: SandboxState | None, after: SandboxState | None) -> None:
        """Moves one sandbox from state to state; ``None`` before it exists and after it is forgotten."""
        if before is not None:
            self._states.labels(before.value).dec()
        if after is not None:
            self._states.labels(after.value).inc()

    def created(self, error: BaseException | None = None) -> None:
        """Counts one attempt to create a sandbox: ``ok``, or the class of the error that ended it."""
        self._created.labels(outcome(error)).inc()

    def ended(self, cause: Cause) -> None:
        """Counts the end of one sandbox, when that is certain; a lost one by its loss."""
        self._ended.labels(cause.value).inc()

    def watched(self, change: int) -> None:
        """Counts a client that begins (1) or ends (-1) to watch sandboxes."""
        self._watches.inc(change)

    def recovered(self, became: RecoveryOutcome) -> None:
        """Counts what became of one sandbox of an earlier daemon."""
        self._recovered.labels(became.value).inc()

    def drained(self) -> None:
        """Counts one sandbox whose guest is too old for anything new."""
        self._drained.inc()

    def drifted(self) -> None:
        """Counts a sandbox that was ended since its container was not what it should be."""
        self._drifts.inc()
