"""Every metric of the daemon, in one place. docs/metrics.md describes each.

Metrics live in a registry of their own, so that two daemons in one process (as in tests) do not share numbers. Label
sets are bounded: a value that is not on its list is counted as ``other``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from enclaved.errors import EnclaveError
from enclaved.model import (
    CHANNEL_NAMES,
    Cause,
    Channel,
    Intervention,
    LeaseKind,
    MemberState,
    NoticeKind,
    Phases,
    Protection,
    RecoveryOutcome,
    ResetOutcome,
    ResourceUsage,
    SandboxState,
    Verdict,
)
from enclaved.model.leftovers import LeftoverKind

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
_NO_BYTES: Mapping[int, int] = MappingProxyType({})

_RPC_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
_PHASE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0)
_ENGINE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 900.0)
_POOL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0)
_MEMORY_BYTES = tuple(4.0**n * 2**20 for n in range(1, 8))  # 4 MiB to 16 GiB
_IO_MOST_BYTES = 2**40
_RPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """Counts and times what the daemon does; `render` answers a scrape.

    ``tools`` are the names that may appear in the label ``tool``.
    """

    def __init__(self, *, version: str, tools: Collection[str] = ()) -> None:
        self._tools = frozenset(tools)
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._rpcs_started = Counter(
            "grpc_server_started", "RPCs started on the server.", _RPC_LABELS, registry=registry
        )
        self._rpcs_handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, whatever their outcome.",
            (*_RPC_LABELS, "grpc_code"),
            registry=registry,
        )
        self._rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its end on the server.",
            _RPC_LABELS,
            buckets=_RPC_SECONDS,
            registry=registry,
        )
        self._rpcs: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._rpcs_ended: dict[tuple[str, str, str, str], Counter] = {}
        self._http = Counter("enclaved_http_requests", "HTTP requests answered.", ("route", "code"), registry=registry)
        self._http_connections = Gauge(
            "enclaved_http_connections", "Connections to the HTTP API that are open.", registry=registry
        )
        self._http_refused = Counter(
            "enclaved_http_connections_refused",
            "Connections to the HTTP API that were closed at once, since there were too many.",
            registry=registry,
        )
        self._sandboxes = Gauge("enclaved_sandboxes", "Sandboxes by state.", ("state",), registry=registry)
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
        self._executions = Counter(
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
        self._execution_memory = Histogram(
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
        self._file_operations = Counter(
            "enclaved_file_operations",
            "Operations on files of sandboxes, by kind and outcome.",
            ("operation", "outcome"),
            registry=registry,
        )
        self._file_seconds = Histogram(
            "enclaved_file_operation_seconds",
            "Time from the start of an operation on files to its end.",
            ("operation",),
            buckets=_RPC_SECONDS,
            registry=registry,
        )
        file_bytes = Counter(
            "enclaved_file_bytes", "Bytes moved into and out of sandboxes as files.", ("direction",), registry=registry
        )
        self._file_bytes_in, self._file_bytes_out = file_bytes.labels("in"), file_bytes.labels("out")
        self._faults = Counter(
            "enclaved_faults", "Calls and executions that failed by a fault of the daemon itself.", registry=registry
        )
        self._engine_up = Gauge("enclaved_engine_up", "Whether the container engine answers.", registry=registry)
        self._protections = Gauge(
            "enclaved_protection",
            "Protections of sandboxes by what is known of them.",
            ("name", "state"),
            registry=registry,
        )
        self._drifts = Counter(
            "enclaved_sandbox_drifts", "Sandboxes ended since their container changed.", registry=registry
        )
        self._engine_channel = Gauge(
            "enclaved_engine_channel", "Whether guests are reached over this channel.", ("channel",), registry=registry
        )
        self._drained = Counter(
            "enclaved_sandboxes_drained",
            "Sandboxes of an earlier daemon that took no new work since their guest was too old.",
            registry=registry,
        )
        self._engine_calls = Counter(
            "enclaved_engine_calls", "Calls to the container engine by outcome.", ("call", "outcome"), registry=registry
        )
        self._engine_seconds = Histogram(
            "enclaved_engine_call_seconds",
            "Time that the container engine took for a call.",
            ("call",),
            buckets=_ENGINE_SECONDS,
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
        self._state_writable = Gauge(
            "enclaved_state_writable", "Whether what happens can be written down.", registry=registry
        )
        self._state_writable.set(1)
        self._reloads = Counter(
            "enclaved_config_reloads", "Reloads of the configuration by outcome.", ("outcome",), registry=registry
        )
        self._policy_refusals = Counter(
            "enclaved_policy_refusals", "Sandboxes that the policy did not grant, by rule", ["rule"], registry=registry
        )
        self._quota_refusals = Counter(
            "enclaved_quota_refusals",
            "Sandboxes and executions beyond what one identity may have, by limit",
            ["limit"],
            registry=registry,
        )
        self._reload_ok = Gauge(
            "enclaved_config_last_reload_successful",
            "Whether the configuration that was read last is the one in force.",
            registry=registry,
        )
        self._reload_ok.set(1)
        self._auth_failures = Counter(
            "enclaved_auth_failures",
            "Calls refused since they had no valid token or key, by listener.",
            ("listener",),
            registry=registry,
        )
        self._tokens = Gauge("enclaved_tokens", "Tokens that are valid.", registry=registry)
        self._certificate_end = Gauge(
            "enclaved_tls_certificate_not_after_timestamp_seconds",
            "When the certificate of the listeners expires; 0 without one.",
            registry=registry,
        )
        self._certificate_reloads = Counter(
            "enclaved_tls_reloads", "Reloads of a changed certificate by outcome.", ("outcome",), registry=registry
        )
        self._pool_members = Gauge("enclaved_pool_members", "Members of pools by state.", ("state",), registry=registry)
        self._pool_waiting = Gauge(
            "enclaved_pool_waiting", "Calls that wait for a free member of a pool.", registry=registry
        )
        self._pool_resets = Counter(
            "enclaved_pool_resets", "Resets of members of pools by outcome.", ("outcome",), registry=registry
        )
        self._reaper_runs = Counter(
            "enclaved_reaper_runs", "Looks for what nobody owns, by outcome.", ("outcome",), registry=registry
        )
        self._reaper_found = Counter(
            "enclaved_reaper_found",
            "Things that nobody owns and that were found, by kind.",
            ("kind",),
            registry=registry,
        )
        self._reaper_removed = Counter(
            "enclaved_reaper_removed", "Things that nobody owned and that were removed.", ("kind",), registry=registry
        )
        self._reaper_success = Gauge(
            "enclaved_reaper_last_success_timestamp_seconds",
            "When everything was looked through last, as Unix time.",
            registry=registry,
        )
        self._reaper_seconds = Gauge(
            "enclaved_reaper_last_run_seconds", "How long the last look for what nobody owns took.", registry=registry
        )
        self._pool_leases = Counter(
            "enclaved_pool_leases", "Members of pools that were lent, by what for.", ("kind",), registry=registry
        )
        self._pool_wait = Histogram(
            "enclaved_pool_wait_seconds",
            "Time that callers waited for a member of a pool.",
            buckets=_POOL_SECONDS,
            registry=registry,
        )
        self._pool_reset_seconds = Histogram(
            "enclaved_pool_reset_seconds",
            "Time from the end of a call in a pool until its member was ready again.",
            buckets=_POOL_SECONDS,
            registry=registry,
        )
        self._pools_troubled = Gauge(
            "enclaved_pools_troubled", "Pools whose members cannot be made now.", registry=registry
        )
        self._pools_refused = Gauge(
            "enclaved_pools_refused", "Mistakes in the operator's definitions of pools.", registry=registry
        )
        Gauge("enclaved_build_info", "Always 1; the version is a label.", ("version",), registry=registry).labels(
            version
        ).set(1)
        for state in SandboxState:
            self._sandboxes.labels(state.value)
        for channel in Channel:
            self._engine_channel.labels(channel.value)
        for outcome in ("ok", "error"):
            self._reloads.labels(outcome)
            self._certificate_reloads.labels(outcome)
        for listener in ("unix", "tcp", "http", "metrics"):
            self._auth_failures.labels(listener)
        # A counter that is there from the start: Prometheus sees no increase in a series that begins with 1.
        for outcome in ("ok", "limit_reached"):
            self._created.labels(outcome)
        for intervention in Intervention:
            self._interventions.labels(intervention.value)
        for cause in Cause:
            self._ended.labels(cause.value)
        for recovery in RecoveryOutcome:
            self._recovered.labels(recovery.value)
        for kind in NoticeKind:
            self._notices.labels(kind.value)
        for member in MemberState:
            self._pool_members.labels(member.value)
        for reset in ResetOutcome:
            self._pool_resets.labels(reset.value)
        for lease in LeaseKind:
            self._pool_leases.labels(lease.value)
        for leftover in LeftoverKind:
            self._reaper_found.labels(leftover.value)
            self._reaper_removed.labels(leftover.value)
        self._reaper_runs.labels("ok")

    def rpc_started(self, kind: str, service: str, method: str) -> None:
        """Counts an RPC that begins. Only for methods that the server has: their number bounds the labels."""
        key = kind, service, method
        (self._rpcs.get(key) or self._first_rpc(key))[0].inc()

    def rpc_handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        """Counts and times an RPC that ended with the gRPC status code of this name."""
        key = kind, service, method
        ended = self._rpcs_ended.get((*key, code))
        if ended is None:
            ended = self._rpcs_ended[*key, code] = self._rpcs_handled.labels(*key, code)
        ended.inc()
        (self._rpcs.get(key) or self._first_rpc(key))[1].observe(seconds)
        if code == "Internal":
            self._faults.inc()

    def _first_rpc(self, key: tuple[str, str, str]) -> tuple[Counter, Histogram]:
        """Keeps the series of a method at hand: to look for labels takes several times as long as to count."""
        found = self._rpcs[key] = self._rpcs_started.labels(*key), self._rpc_seconds.labels(*key)
        return found

    def http_request(self, route: str, code: int) -> None:
        """Counts an HTTP request: its route as it is documented (or ``other``), and the status of its answer."""
        self._http.labels(route, str(code)).inc()
        if code == 500:
            self._faults.inc()

    def http_connection(self, change: int) -> None:
        """Counts a connection to the HTTP API that is opened (1) or closed (-1)."""
        self._http_connections.inc(change)

    def http_connection_refused(self) -> None:
        """Counts a connection to the HTTP API that was closed at once, since there were too many."""
        self._http_refused.inc()

    def sandbox_moved(self, before: SandboxState | None, after: SandboxState | None) -> None:
        """Moves one sandbox from state to state; ``None`` before it exists and after it is forgotten."""
        if before is not None:
            self._sandboxes.labels(before.value).dec()
        if after is not None:
            self._sandboxes.labels(after.value).inc()

    def sandbox_created(self, error: BaseException | None = None) -> None:
        """Counts one attempt to create a sandbox: ``ok``, or the class of the error that ended it."""
        self._created.labels("ok" if error is None else _outcome(error)).inc()

    def policy_refused(self, rule: str) -> None:
        """Counts one sandbox that the policy did not grant."""
        self._policy_refusals.labels(rule).inc()

    def quota_refused(self, limit: str) -> None:
        """Counts one sandbox or execution that was more than somebody may have."""
        self._quota_refusals.labels(limit).inc()

    def sandbox_ended(self, cause: Cause) -> None:
        """Counts the end of one sandbox, when that is certain; a lost one by its loss."""
        self._ended.labels(cause.value).inc()

    def sandboxes_watched(self, change: int) -> None:
        """Counts a client that begins (1) or ends (-1) to watch sandboxes."""
        self._watches.inc(change)

    def sandbox_recovered(self, outcome: RecoveryOutcome) -> None:
        """Counts what became of one sandbox of an earlier daemon."""
        self._recovered.labels(outcome.value).inc()

    def execution_started(self) -> None:
        """Counts one execution as active until `execution_finished`."""
        self._active.inc()

    def execution_finished(
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
        self._executions.labels(tool if tool in self._tools else OTHER, verdict.value).inc()
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
            self._execution_memory.observe(usage.memory_peak_bytes)

    def execution_followed(self, change: int) -> None:
        """Counts a client that begins (1) or ends (-1) to follow an execution."""
        self._readers.inc(change)

    def execution_noticed(self, kind: NoticeKind) -> None:
        """Counts one notice: of a gap once for each reader that misses something, of the others once."""
        self._notices.labels(kind.value).inc()

    def execution_signalled(self) -> None:
        """Counts one signal that a caller sent to an execution."""
        self._signals.inc()

    def execution_adopted(self) -> None:
        """Counts one execution of an earlier daemon that was taken up, as active until `execution_finished`."""
        self._adopted.inc()
        self._active.inc()

    def file_operation(
        self, operation: str, seconds: float, bytes_in: int, bytes_out: int, error: BaseException | None = None
    ) -> None:
        """Counts and times one operation on files of a sandbox: ``ok``, or the class of the error that ended it."""
        self._file_operations.labels(operation, "ok" if error is None else _outcome(error)).inc()
        self._file_seconds.labels(operation).observe(seconds)
        self._file_bytes_in.inc(bytes_in)
        self._file_bytes_out.inc(bytes_out)

    def engine_up(self, up: bool) -> None:
        """Says whether the engine answered when it was last looked at."""
        self._engine_up.set(1 if up else 0)

    def engine_channel(self, used: Channel) -> None:
        """Says how guests are reached."""
        for channel in Channel:
            self._engine_channel.labels(channel.value).set(1 if channel is used else 0)

    def sandbox_drained(self) -> None:
        """Counts one sandbox whose guest is too old for anything new."""
        self._drained.inc()

    def engine_called(self, call: str, seconds: float, error: BaseException | None = None) -> None:
        """Counts and times one call to the engine: ``ok``, or the class of the error that ended it."""
        self._engine_calls.labels(call, "ok" if error is None else _outcome(error)).inc()
        self._engine_seconds.labels(call).observe(seconds)

    def engine_intervened(self, what: Intervention) -> None:
        """Counts one thing that somebody else did at the engine to the container of a sandbox."""
        self._interventions.labels(what.value).inc()

    def engine_events(self, connected: bool) -> None:
        """Says whether the engine tells what happens."""
        self._events_connected.set(1 if connected else 0)

    def engine_event_gap(self) -> None:
        """Counts one time that the engine stopped telling what happens."""
        self._event_gaps.inc()

    def protections(self, states: Iterable[Protection]) -> None:
        """Says what is known of each protection."""
        self._protections.clear()
        for one in states:
            self._protections.labels(one.name, one.state.value).set(1)

    def sandbox_drifted(self) -> None:
        """Counts a sandbox that was ended since its container was not what it should be."""
        self._drifts.inc()

    def state_writable(self, writable: bool) -> None:
        """Says whether the last write to the state directory worked."""
        self._state_writable.set(1 if writable else 0)

    def reloaded(self, successful: bool) -> None:
        """Counts one reading of the configuration after the start."""
        self._reloads.labels("ok" if successful else "error").inc()
        self._reload_ok.set(1 if successful else 0)

    def auth_failed(self, listener: str) -> None:
        """Counts one call without a valid token or key at a listener (unix, tcp, http or metrics)."""
        self._auth_failures.labels(listener).inc()

    def tokens_valid(self, count: int) -> None:
        """Says how many tokens are valid."""
        self._tokens.set(count)

    def certificate_loaded(self, not_after_s: float) -> None:
        """Says when the certificate in use expires, in seconds since the epoch."""
        self._certificate_end.set(not_after_s)

    def certificate_reloaded(self, successful: bool) -> None:
        """Counts one look at a changed certificate."""
        self._certificate_reloads.labels("ok" if successful else "error").inc()

    def pool_member_moved(self, before: MemberState | None, after: MemberState | None) -> None:
        """Moves one member of a pool from state to state; ``None`` before it is there and after it is gone."""
        if before is not None:
            self._pool_members.labels(before.value).dec()
        if after is not None:
            self._pool_members.labels(after.value).inc()

    def pool_waiting(self, change: int) -> None:
        """Counts calls that begin (1) or end (-1) to wait for a member of a pool."""
        self._pool_waiting.inc(change)

    def pool_reset(self, outcome: ResetOutcome, seconds: float | None = None) -> None:
        """Counts one reset of a member of a pool, and times it."""
        self._pool_resets.labels(outcome.value).inc()
        if seconds is not None:
            self._pool_reset_seconds.observe(seconds)

    def pool_lent(self, kind: LeaseKind, waited_s: float) -> None:
        """Counts a member that was lent, and how long its caller waited for it."""
        self._pool_leases.labels(kind.value).inc()
        self._pool_wait.observe(waited_s)

    def pool_troubled(self, change: int) -> None:
        """Counts a pool whose members cannot be made (1), or can be made again (-1)."""
        self._pools_troubled.inc(change)

    def pools_refused(self, count: int) -> None:
        """Says how many mistakes the operator's definitions of pools have."""
        self._pools_refused.set(count)

    def reaper_began(self) -> None:
        """Says that there will be looks for what nobody owns, from now on."""
        self._reaper_success.set_to_current_time()

    def reaper_ran(self, seconds: float, error: BaseException | None = None) -> None:
        """Counts and times one look for what nobody owns."""
        self._reaper_runs.labels("ok" if error is None else _outcome(error)).inc()
        self._reaper_seconds.set(seconds)
        if error is None:
            self._reaper_success.set_to_current_time()

    def leftover_found(self, kind: LeftoverKind) -> None:
        """Counts one thing that nobody owns, when it is seen for the first time."""
        self._reaper_found.labels(kind.value).inc()

    def leftover_removed(self, kind: LeftoverKind) -> None:
        """Counts one thing that nobody owned and that is gone now."""
        self._reaper_removed.labels(kind.value).inc()

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


def _outcome(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if not isinstance(error, EnclaveError):
        return "internal"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
