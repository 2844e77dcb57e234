"""The daemon itself: its version, its configuration, its state directory, and the protections that it checked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from enclaved.model import Protection


class DaemonMetrics:
    """Whether the daemon can do what it is there for."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        self._protections = Gauge(
            "enclaved_protection",
            "Protections of sandboxes by what is known of them.",
            ("name", "state"),
            registry=registry,
        )
        self._state_writable = Gauge(
            "enclaved_state_writable", "Whether what happens can be written down.", registry=registry
        )
        self._state_writable.set(1)
        self._reloads = Counter(
            "enclaved_config_reloads", "Reloads of the configuration by outcome.", ("outcome",), registry=registry
        )
        self._reload_ok = Gauge(
            "enclaved_config_last_reload_successful",
            "Whether the configuration that was read last is the one in force.",
            registry=registry,
        )
        self._reload_ok.set(1)
        build = Gauge("enclaved_build_info", "Always 1; the version is a label.", ("version",), registry=registry)
        build.labels(version).set(1)
        for outcome in ("ok", "error"):
            self._reloads.labels(outcome)

    def protections(self, states: Iterable[Protection]) -> None:
        """Says what is known of each protection."""
        self._protections.clear()
        for one in states:
            self._protections.labels(one.name, one.state.value).set(1)

    def state_writable(self, writable: bool) -> None:
        """Says whether the last write to the state directory worked."""
        self._state_writable.set(1 if writable else 0)

    def reloaded(self, successful: bool) -> None:
        """Counts one reading of the configuration after the start."""
        self._reloads.labels("ok" if successful else "error").inc()
        self._reload_ok.set(1 if successful else 0)
