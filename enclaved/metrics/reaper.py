"""The looks for what nobody owns."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from enclaved.metrics.labels import outcome
from enclaved.model.leftovers import LeftoverKind


class ReaperMetrics:
    """Looks for what nobody owns, and what they found and removed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs = Counter(
            "enclaved_reaper_runs", "Looks for what nobody owns, by outcome.", ("outcome",), registry=registry
        )
        self._found = Counter(
            "enclaved_reaper_found",
            "Things that nobody owns and that were found, by kind.",
            ("kind",),
            registry=registry,
        )
        self._removed = Counter(
            "enclaved_reaper_removed", "Things that nobody owned and that were removed.", ("kind",), registry=registry
        )
        self._success = Gauge(
            "enclaved_reaper_last_success_timestamp_seconds",
            "When everything was looked through last, as Unix time.",
            registry=registry,
        )
        self._seconds = Gauge(
            "enclaved_reaper_last_run_seconds", "How long the last look for what nobody owns took.", registry=registry
        )
        for leftover in LeftoverKind:
            self._found.labels(leftover.value)
            self._removed.labels(leftover.value)
        self._runs.labels("ok")

    def began(self) -> None:
        """Says that there will be looks from now on."""
        self._success.set_to_current_time()

    def ran(self, seconds: float, error: BaseException | None = None) -> None:
        """Counts and times one look."""
        self._runs.labels(outcome(error)).inc()
        self._seconds.set(seconds)
        if error is None:
            self._success.set_to_current_time()

    def found(self, kind: LeftoverKind) -> None:
        """Counts one thing that nobody owns, when it is seen for the first time."""
        self._found.labels(kind.value).inc()

    def removed(self, kind: LeftoverKind) -> None:
        """Counts one thing that nobody owned and that is gone now."""
        self._removed.labels(kind.value).inc()
