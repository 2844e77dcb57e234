"""The container engine, and how guests are reached."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from enclaved.metrics.labels import outcome
from enclaved.model import Channel, Intervention

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 900.0)


class EngineMetrics:
    """Calls to the engine, whether it answers, and what it tells."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = Gauge("enclaved_engine_up", "Whether the container engine answers.", registry=registry)
        self._channels = Gauge(
            "enclaved_engine_channel", "Whether guests are reached over this channel.", ("channel",), registry=registry
        )
        self._calls = Counter(
            "enclaved_engine_calls", "Calls to the container engine by outcome.", ("call", "outcome"), registry=registry
        )
        self._seconds = Histogram(
            "enclaved_engine_call_seconds",
            "Time that the container engine took for a call.",
            ("call",),
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self._interventions = Counter(
            "enclaved_engine_interventions",
            "What somebody else did at the engine to containers of sandboxes.",
            ("what",),
            registry=registry,
        )
        self._events_connected = Gauge(
            "enclaved_engine_events_connected", "Whether the engine tells what happens.", registry=registry
        )
        self._event_gaps = Counter(
            "enclaved_engine_event_gaps",
            "How often the engine stopped telling what happens, and everything was looked through.",
            registry=registry,
        )
        for channel in Channel:
            self._channels.labels(channel.value)
        for intervention in Intervention:
            self._interventions.labels(intervention.value)

    def up(self, up: bool) -> None:
        """Says whether the engine answered when it was last looked at."""
        self._up.set(1 if up else 0)

    def channel(self, used: Channel) -> None:
        """Says how guests are reached."""
        for channel in Channel:
            self._channels.labels(channel.value).set(1 if channel is used else 0)

    def called(self, call: str, seconds: float, error: BaseException | None = None) -> None:
        """Counts and times one call to the engine: ``ok``, or the class of the error that ended it."""
        self._calls.labels(call, outcome(error)).inc()
        self._seconds.labels(call).observe(seconds)

    def intervened(self, what: Intervention) -> None:
        """Counts one thing that somebody else did at the engine to the container of a sandbox."""
        self._interventions.labels(what.value).inc()

    def events(self, connected: bool) -> None:
        """Says whether the engine tells what happens."""
        self._events_connected.set(1 if connected else 0)

    def event_gap(self) -> None:
        """Counts one time that the engine stopped telling what happens."""
        self._event_gaps.inc()
