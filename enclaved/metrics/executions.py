"""Executions: how many, how long, and what they used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from enclaved.metrics.labels import OTHER
from enclaved.model import CHANNEL_NAMES, NoticeKind, Phases, ResourceUsage, Verdict

_NO_BYTES: Mapping[int, int] = MappingProxyType({})
_PHASE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0)
_MEMORY_BYTES = tuple(4.0**n * 2**20 for n in range(1, 8))  # 4 MiB to 16 GiB
_IO_MOST_BYTES = 2**40


class ExecutionMetrics:
    """Executions by tool and verdict, their phases and their use. Tools beyond ``tools`` are counted as ``other``."""

    def __init__(self, registry: CollectorRegistry, faults: Counter, tools: Collection[str]) -> None:
        self._faults, self._tools = faults, frozenset(tools)
        self._finished = Counter(
            "enclaved_executions", "Executions that ended, by tool and verdict.", ("tool", "verdict"), registry=registry
        )
        self._active = Gauge("enclaved_executions_active", "Executions that run or wait now.", registry=registry)
        phases = Histogram(
            "enclaved_execution_phase_seconds",
            "Wall time of executions by phase.",
            ("phase",),
            buckets=_PHASE_SECONDS,
            registry=registry,
        )
        self._phases = [phases.labels(name) for name in ("queued", "starting", "running", "draining")]
        cpu = Counter(
            "enclaved_execution_cpu_seconds", "CPU time that executions used, by mode.", ("mode",), registry=registry
        )
        self._cpu_user, self._cpu_system = cpu.labels("user"), cpu.labels("system")
        self._memory = Histogram(
            "enclaved_execution_memory_peak_bytes",
            "Largest memory use of executions.",
            buckets=_MEMORY_BYTES,
            registry=registry,
        )
        io = Counter(
            "enclaved_execution_io_bytes", "Bytes that executions read and wrote.", ("direction",), registry=registry
        )
        self._io_read, self._io_write = io.labels("read"), io.labels("write")
        output = Counter(
            "enclaved_execution_output_bytes", "Output of executions by channel.", ("channel",), registry=registry
        )
        self._output = {channel: output.labels(name) for channel, name in CHANNEL_NAMES.items()}
        self._readers = Gauge("enclaved_execution_readers", "Clients that follow an execution now.", registry=registry)
        self._notices = Counter(
            "enclaved_execution_notices", "Notices of executions by kind.", ("kind",), registry=registry
        )
        self._signals = Counter(
            "enclaved_execution_signals", "Signals that callers sent to executions.", registry=registry
        )
        self._adopted = Counter(
            "enclaved_executions_adopted", "Executions of an earlier daemon that were taken up.", registry=registry
        )
        for kind in NoticeKind:
            self._notices.labels(kind.value)

    def started(self) -> None:
        """Counts one execution as active until `finished`."""
        self._active.inc()

    def adopted(self) -> None:
        """Counts one execution of an earlier daemon that was taken up, as active until `finished`."""
        self._adopted.inc()
        self._active.inc()

    def finished(
        self,
        tool: str,
        verdict: Verdict,
        phases: Phases,
        usage: ResourceUsage | None = None,
        bytes_total: Mapping[int, int] = _NO_BYTES,
    ) -> None:
        """Counts the end of one execution, times its phases and adds up what it used.

        ``usage=None``: not known. ``bytes_total`` is its output by channel.
        """
        self._active.dec()
        self._finished.labels(tool if tool in self._tools else OTHER, verdict.value).inc()
        spent_s = (phases.queued_s, phases.starting_s, phases.running_s, phases.draining_s)
        if verdict is Verdict.INTERNAL_ERROR:
            self._faults.inc()
        for histogram, seconds in zip(self._phases, spent_s, strict=True):
            histogram.observe(seconds)
        for channel, written in bytes_total.items():
            self._output[channel].inc(written)
        if usage is not None:
            self._cpu_user.inc(usage.cpu_user_s)
            self._cpu_system.inc(usage.cpu_system_s)
            # A process of the sandbox counts these: it must not be able to put the sum beyond the precision of a float.
            self._io_read.inc(min(usage.io_read_bytes, _IO_MOST_BYTES))
            self._io_write.inc(min(usage.io_write_bytes, _IO_MOST_BYTES))
            self._memory.observe(usage.memory_peak_bytes)

    def followed(self, change: int) -> None:
        """Counts a client that begins (1) or ends (-1) to follow an execution."""
        self._readers.inc(change)

    def noticed(self, kind: NoticeKind) -> None:
        """Counts one notice: of a gap once for each reader that misses something, of the others once."""
        self._notices.labels(kind.value).inc()

    def signalled(self) -> None:
        """Counts one signal that a caller sent to an execution."""
        self._signals.inc()
