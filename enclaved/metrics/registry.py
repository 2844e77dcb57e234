"""All metrics of one daemon, and the answer to a scrape."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from enclaved.metrics.access import AccessMetrics
from enclaved.metrics.calls import HttpMetrics, RpcMetrics
from enclaved.metrics.daemon import DaemonMetrics
from enclaved.metrics.engine import EngineMetrics
from enclaved.metrics.executions import ExecutionMetrics
from enclaved.metrics.files import FileMetrics
from enclaved.metrics.pools import PoolMetrics
from enclaved.metrics.reaper import ReaperMetrics
from enclaved.metrics.sandboxes import SandboxMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts and times what the daemon does, by what it is about; `render` answers a scrape.

    ``tools`` are the names that may appear in the label ``tool``.
    """

    def __init__(self, *, version: str, tools: Collection[str] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        faults = Counter(
            "enclaved_faults", "Calls and executions that failed by a fault of the daemon itself.", registry=registry
        )
        self.rpcs = RpcMetrics(registry, faults)
        self.http = HttpMetrics(registry, faults)
        self.access = AccessMetrics(registry)
        self.sandboxes = SandboxMetrics(registry)
        self.executions = ExecutionMetrics(registry, faults, tools)
        self.files = FileMetrics(registry)
        self.engine = EngineMetrics(registry)
        self.pools = PoolMetrics(registry)
        self.reaper = ReaperMetrics(registry)
        self.daemon = DaemonMetrics(registry, version)

    def render(self) -> bytes:
        """Answers a scrape in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(_WithoutCreationTimes(self._registry))

    def value(self, name: str, **labels: str) -> float:
        """Reads one sample; 0 if it does not exist (yet)."""
        return self._registry.get_sample_value(name, labels) or 0.0


class _WithoutCreationTimes(Collector):
    """A view of a registry without the ``_created`` series that the library adds to each counter and histogram."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yields the registry's metrics."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if sample.name != f"{metric.name}_created"]
            yield metric
