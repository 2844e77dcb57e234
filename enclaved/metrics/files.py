"""Operations on files of sandboxes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from enclaved.metrics.labels import CALL_SECONDS, outcome


class FileMetrics:
    """Operations on files by kind and outcome, their time and the bytes moved."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._operations = Counter(
            "enclaved_file_operations",
            "Operations on files of sandboxes, by kind and outcome.",
            ("operation", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "enclaved_file_operation_seconds",
            "Time from the start of an operation on files to its end.",
            ("operation",),
            buckets=CALL_SECONDS,
            registry=registry,
        )
        moved = Counter(
            "enclaved_file_bytes", "Bytes moved into and out of sandboxes as files.", ("direction",), registry=registry
        )
        self._bytes_in, self._bytes_out = moved.labels("in"), moved.labels("out")

    def operation(
        self, name: str, seconds: float, bytes_in: int, bytes_out: int, error: BaseException | None = None
    ) -> None:
        """Counts and times one operation: ``ok``, or the class of the error that ended it."""
        self._operations.labels(name, outcome(error)).inc()
        self._seconds.labels(name).observe(seconds)
        self._bytes_in.inc(bytes_in)
        self._bytes_out.inc(bytes_out)
