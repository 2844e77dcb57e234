"""Counting: what is counted, and that nobody can blow up the label sets."""

import asyncio

import pytest

from enclaved.errors import EngineUnavailable, PolicyDenied
from enclaved.metrics import OTHER, Metrics
from enclaved.model import STDERR, STDOUT, TERMINAL, NoticeKind, Phases, ResourceUsage, SandboxState, Verdict


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", tools=["python_executor"])


def test_two_daemons_in_one_process_do_not_share_numbers():
    one, other = Metrics(version="1"), Metrics(version="1")
    one.executions.started()
    assert (one.value("enclaved_executions_active"), other.value("enclaved_executions_active")) == (1, 0)


def test_a_tool_that_is_not_installed_is_counted_as_other(metrics):
    for tool in ("python_executor", "made\nup{}", "another"):
        metrics.executions.started()
        metrics.executions.finished(tool, Verdict.EXITED, Phases(running_s=0.2))
    assert metrics.value("enclaved_executions_total", tool="python_executor", verdict="EXITED") == 1
    assert metrics.value("enclaved_executions_total", tool=OTHER, verdict="EXITED") == 2
    assert metrics.value("enclaved_executions_active") == 0
    assert b"up{}" not in metrics.render()


def test_phases_are_timed(metrics):
    metrics.executions.started()
    metrics.executions.finished("python_executor", Verdict.TIMEOUT, Phases(0.1, 0.2, 3.0, 0.4))
    sums = {
        phase: metrics.value("enclaved_execution_phase_seconds_sum", phase=phase)
        for phase in ("queued", "starting", "running", "draining")
    }
    assert sums == {"queued": 0.1, "starting": 0.2, "running": 3.0, "draining": 0.4}


def test_what_executions_use_is_added_up(metrics):
    for _ in range(2):
        metrics.executions.started()
        usage = ResourceUsage(
            cpu_user_s=1.5, cpu_system_s=0.25, memory_peak_bytes=5 * 2**20, io_read_bytes=7, io_write_bytes=8
        )
        metrics.executions.finished(
            "python_executor", Verdict.EXITED, Phases(), usage, {STDOUT: 10, STDERR: 1, TERMINAL: 0}
        )
    assert metrics.value("enclaved_execution_cpu_seconds_total", mode="user") == 3
    assert metrics.value("enclaved_execution_cpu_seconds_total", mode="system") == 0.5
    assert metrics.value("enclaved_execution_io_bytes_total", direction="read") == 14
    assert metrics.value("enclaved_execution_io_bytes_total", direction="write") == 16
    assert metrics.value("enclaved_execution_output_bytes_total", channel="stdout") == 20
    assert metrics.value("enclaved_execution_output_bytes_total", channel="stderr") == 2
    buckets = {le: metrics.value("enclaved_execution_memory_peak_bytes_bucket", le=le) for le in MEMORY_BUCKETS}
    assert buckets == {"4.194304e+06": 0, "1.6777216e+07": 2}


MEMORY_BUCKETS = ("4.194304e+06", "1.6777216e+07")


def test_a_count_that_a_sandbox_made_up_does_not_swamp_the_sum(metrics):
    for written in (2**62, 5):
        metrics.executions.started()
        usage = ResourceUsage(io_write_bytes=written)
        metrics.executions.finished("python_executor", Verdict.EXITED, Phases(), usage)
    assert metrics.value("enclaved_execution_io_bytes_total", direction="write") == 2**40 + 5


def test_an_execution_whose_use_is_not_known_adds_nothing(metrics):
    metrics.executions.started()
    metrics.executions.finished("python_executor", Verdict.SANDBOX_LOST, Phases())
    assert metrics.value("enclaved_execution_memory_peak_bytes_count") == 0
    assert metrics.value("enclaved_execution_cpu_seconds_total", mode="user") == 0


def test_an_adopted_execution_is_active_until_it_ends(metrics):
    metrics.executions.adopted()
    assert metrics.value("enclaved_executions_adopted_total") == 1
    assert metrics.value("enclaved_executions_active") == 1
    metrics.executions.finished("python_executor", Verdict.EXITED, Phases())
    assert metrics.value("enclaved_executions_active") == 0


def test_readers_notices_and_signals_are_counted(metrics):
    for change in (1, 1, -1):
        metrics.executions.followed(change)
    metrics.executions.noticed(NoticeKind.GAP)
    metrics.executions.signalled()
    assert metrics.value("enclaved_execution_readers") == 1
    assert metrics.value("enclaved_execution_notices_total", kind="gap") == 1
    assert metrics.value("enclaved_execution_notices_total", kind="awaiting_input") == 0
    assert metrics.value("enclaved_execution_signals_total") == 1


def test_a_sandbox_is_counted_in_one_state_at_a_time(metrics):
    metrics.sandboxes.moved(None, SandboxState.INITIALIZING)
    metrics.sandboxes.moved(SandboxState.INITIALIZING, SandboxState.RUNNING)
    counts = {state: metrics.value("enclaved_sandboxes", state=state.value) for state in SandboxState}
    assert counts == {**dict.fromkeys(SandboxState, 0), SandboxState.RUNNING: 1}
    metrics.sandboxes.moved(SandboxState.RUNNING, None)
    assert metrics.value("enclaved_sandboxes", state="running") == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (PolicyDenied("privileged", "spec.privileged", "no"), "policy_denied"),
        (EngineUnavailable("unix:///x", "no answer"), "engine_unavailable"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError("secret"), "internal"),
    ],
)
def test_creations_are_counted_by_outcome(metrics, error, outcome):
    metrics.sandboxes.created(error)
    assert metrics.value("enclaved_sandboxes_created_total", outcome=outcome) == 1


def test_a_scrape_has_every_state_from_the_start_and_no_creation_times(metrics):
    text = metrics.render().decode()
    for state in SandboxState:
        assert f'enclaved_sandboxes{{state="{state.value}"}} 0.0' in text
    assert 'enclaved_build_info{version="1.2.3"} 1.0' in text
    assert "_created_created" not in text
    assert "seconds_created" not in text
    assert "process_open_fds" in text


def test_rpcs_are_counted_in_the_names_that_existing_dashboards_use(metrics):
    labels = {"grpc_type": "unary", "grpc_service": "s.S", "grpc_method": "M"}
    metrics.rpcs.started("unary", "s.S", "M")
    metrics.rpcs.handled("unary", "s.S", "M", "OK", 0.25)
    assert metrics.value("grpc_server_started_total", **labels) == 1
    assert metrics.value("grpc_server_handled_total", **labels, grpc_code="OK") == 1
    assert metrics.value("grpc_server_handling_seconds_sum", **labels) == 0.25
