"""Calls at the edges: RPCs, and requests over HTTP."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from enclaved.metrics.labels import CALL_SECONDS

_RPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class RpcMetrics:
    """RPCs, in the names that existing dashboards for gRPC use."""

    def __init__(self, registry: CollectorRegistry, faults: Counter) -> None:
        self._faults = faults
        self._started = Counter("grpc_server_started", "RPCs started on the server.", _RPC_LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, whatever their outcome.",
            (*_RPC_LABELS, "grpc_code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its end on the server.",
            _RPC_LABELS,
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self._methods: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._ends: dict[tuple[str, str, str, str], Counter] = {}

    def started(self, kind: str, service: str, method: str) -> None:
        """Counts an RPC that begins. Only for methods that the server has: their number bounds the labels."""
        key = kind, service, method
        (self._methods.get(key) or self._first(key))[0].inc()

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        """Counts and times an RPC that ended with the gRPC status code of this name."""
        key = kind, service, method
        ended = self._ends.get((*key, code))
        if ended is None:
            ended = self._ends[*key, code] = self._handled.labels(*key, code)
        ended.inc()
        (self._methods.get(key) or self._first(key))[1].observe(seconds)
        if code == "Internal":
            self._faults.inc()

    def _first(self, key: tuple[str, str, str]) -> tuple[Counter, Histogram]:
        """Keeps the series of a method at hand: to look for labels takes several times as long as to count."""
        found = self._methods[key] = self._started.labels(*key), self._seconds.labels(*key)
        return found


class HttpMetrics:
    """Requests and connections of the HTTP API."""

    def __init__(self, registry: CollectorRegistry, faults: Counter) -> None:
        self._faults = faults
        self._requests = Counter(
            "enclaved_http_requests", "HTTP requests answered.", ("route", "code"), registry=registry
        )
        self._connections = Gauge(
            "enclaved_http_connections", "Connections to the HTTP API that are open.", registry=registry
        )
        self._refused = Counter(
            "enclaved_http_connections_refused",
            "Connections to the HTTP API that were closed at once, since there were too many.",
            registry=registry,
        )

    def answered(self, route: str, code: int) -> None:
        """Counts an HTTP request: its route as it is documented (or ``other``), and the status of its answer."""
        self._requests.labels(route, str(code)).inc()
        if code == 500:
            self._faults.inc()

    def connection(self, change: int) -> None:
        """Counts a connection that is opened (1) or closed (-1)."""
        self._connections.inc(change)

    def connection_refused(self) -> None:
        """Counts a connection that was closed at once, since there were too many."""
        self._refused.inc()
