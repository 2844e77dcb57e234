"""Counting: what is counted, and that nobody can blow up the label sets."""

import asyncio

import pytest

from enclaved.errors import EngineUnavailable, PolicyDenied
from enclaved.metrics import OTHER, Metrics
from enclaved.model import Phases, SandboxState, Verdict


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3", tools=["python_executor"])


def test_two_daemons_in_one_process_do_not_share_numbers():
    one, other = Metrics(version="1"), Metrics(version="1")
    one.execution_started()
    assert (one.value("enclaved_executions_active"), other.value("enclaved_executions_active")) == (1, 0)


def test_a_tool_that_is_not_installed_is_counted_as_other(metrics):
    for tool in ("python_executor", "made\nup{}", "another"):
        metrics.execution_started()
        metrics.execution_finished(tool, Verdict.EXITED, Phases(running_s=0.2))
    assert metrics.value("enclaved_executions_total", tool="python_executor", verdict="EXITED") == 1
    assert metrics.value("enclaved_executions_total", tool=OTHER, verdict="EXITED") == 2
    assert metrics.value("enclaved_executions_active") == 0
    assert b"made" not in metrics.render()


def test_phases_are_timed(metrics):
    metrics.execution_started()
    metrics.execution_finished("python_executor", Verdict.TIMEOUT, Phases(0.1, 0.2, 3.0, 0.4))
    sums = {
        phase: metrics.value("enclaved_execution_phase_seconds_sum", phase=phase)
        for phase in ("queued", "starting", "running", "draining")
    }
    assert sums == {"queued": 0.1, "starting": 0.2, "running": 3.0, "draining": 0.4}


def test_a_sandbox_is_counted_in_one_state_at_a_time(metrics):
    metrics.sandbox_moved(None, SandboxState.INITIALIZING)
    metrics.sandbox_moved(SandboxState.INITIALIZING, SandboxState.RUNNING)
    counts = {state: metrics.value("enclaved_sandboxes", state=state.value) for state in SandboxState}
    assert counts == {**dict.fromkeys(SandboxState, 0), SandboxState.RUNNING: 1}
    metrics.sandbox_moved(SandboxState.RUNNING, None)
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
    metrics.sandbox_created(error)
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
    metrics.rpc_started("unary", "s.S", "M")
    metrics.rpc_handled("unary", "s.S", "M", "OK", 0.25)
    assert metrics.value("grpc_server_started_total", **labels) == 1
    assert metrics.value("grpc_server_handled_total", **labels, grpc_code="OK") == 1
    assert metrics.value("grpc_server_handling_seconds_sum", **labels) == 0.25
