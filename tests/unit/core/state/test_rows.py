"""What is written down comes back as it was, whatever it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved import model
from enclaved.core.execution_rows import ExecutionRow
from enclaved.core.state import SandboxRow, State
from enclaved.runtime.base import Image

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**62)
SECONDS = st.floats(0, 1e12)
MOMENTS = st.datetimes(min_value=datetime(2020, 1, 1), timezones=st.just(UTC))
MAPPING = st.dictionaries(TEXT, TEXT, max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | COUNT | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SPECS = st.builds(
    model.SandboxSpec,
    image=TEXT,
    env_vars=MAPPING | MAPPING.map(MappingProxyType),
    tools=st.none() | st.dictionaries(TEXT, st.dictionaries(TEXT, JSON, max_size=2), max_size=2),
    cpu_limit=SECONDS,
    timeout_s=SECONDS | st.just(float("inf")),
    timeout_max_s=SECONDS,
    ttl_s=SECONDS,
    working_dir=TEXT,
)
ADJUSTMENTS = st.builds(model.Adjustment, TEXT, TEXT, TEXT, TEXT)
IMAGES = st.builds(Image, TEXT, TEXT, MAPPING, st.lists(TEXT, max_size=2).map(tuple))
SANDBOXES = st.builds(
    SandboxRow,
    id=TEXT,
    number=COUNT,
    spec=SPECS,
    adjustments=st.lists(ADJUSTMENTS, max_size=2).map(tuple),
    labels=MAPPING,
    uid=COUNT,
    directory=TEXT,
    container_id=st.none() | TEXT,
    image=st.none() | IMAGES,
    env=MAPPING,
    state_reason=TEXT,
    created_at=MOMENTS,
    updated_at=MOMENTS,
    expires_monotonic_s=SECONDS,
    boot_id=TEXT,
    pool_id=TEXT,
    tenant=TEXT,
    request_id=TEXT,
    request_digest=TEXT,
    revision=COUNT,
    used_monotonic_s=SECONDS,
    limits_due=st.booleans(),
    history=st.lists(
        st.builds(model.StateChange, MOMENTS, st.sampled_from(model.SandboxState), TEXT, st.sampled_from(model.Cause)),
        max_size=3,
    ).map(tuple),
)
FINISHED = st.builds(
    model.Finished,
    message=TEXT,
    exception=st.none() | st.builds(model.ExceptionInfo, TEXT, TEXT, st.none() | COUNT),
    bytes_total=st.dictionaries(st.sampled_from([1, 2, 3]), COUNT),
    usage=st.builds(model.ResourceUsage, SECONDS, SECONDS, COUNT, COUNT, COUNT),
    phases=st.builds(model.Phases, SECONDS, SECONDS, SECONDS, SECONDS),
    limits_hit=st.lists(st.builds(model.LimitHit, TEXT, COUNT, COUNT, COUNT), max_size=2).map(tuple),
    timeout_s=SECONDS,
    signal_sender=st.none() | st.sampled_from(model.SignalSender),
    cancelled_by=TEXT,
)
EXECUTIONS = st.builds(
    ExecutionRow,
    id=TEXT,
    sandbox_id=TEXT,
    tool=TEXT,
    context=TEXT,
    created_at=MOMENTS,
    timeout_s=SECONDS,
    idle_timeout_s=SECONDS,
    detach_grace_s=SECONDS,
    terminal=st.none() | st.builds(model.TerminalSize, COUNT, COUNT),
    keep_last_bytes=st.none() | COUNT,
    cancelled_by=TEXT,
    finished=st.none() | FINISHED,
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    opened = State.open(tmp_path_factory.mktemp("state") / "state.db")
    yield opened
    opened.close()


def plain(row: SandboxRow) -> SandboxRow:
    """Read-only views are not equal to what they show."""
    return replace(row, spec=replace(row.spec, env_vars=dict(row.spec.env_vars)))


@settings(max_examples=200)
@given(row=SANDBOXES)
def test_a_sandbox_comes_back_as_it_was(state: State, row: SandboxRow) -> None:
    state.sandboxes.save(row)
    assert state.sandboxes.load() == [plain(row)]
    state.sandboxes.forget(row.id, row.number)
    assert state.sandboxes.load() == []


@settings(max_examples=200)
@given(row=EXECUTIONS)
def test_an_execution_comes_back_as_it_was(state: State, row: ExecutionRow) -> None:
    state.executions.save(row)
    assert state.executions.load() == [row]
    state.executions.forget(row.id)
    assert state.executions.load() == []


@settings(max_examples=100)
@given(row=EXECUTIONS, finished=FINISHED)
def test_an_end_stays_whatever_else_is_said_of_the_execution(
    state: State, row: ExecutionRow, finished: model.Finished
) -> None:
    row = replace(row, finished=None)
    state.executions.save(row)
    state.executions.finish(row.id, finished)
    state.executions.save(replace(row, cancelled_by="somebody"))
    assert state.executions.load() == [replace(row, finished=finished, cancelled_by="somebody")]
    state.executions.forget(row.id)


@settings(max_examples=20)
@given(row=SANDBOXES)
def test_a_younger_sandbox_of_the_same_id_is_not_forgotten_with_the_elder(state: State, row: SandboxRow) -> None:
    younger = replace(row, number=row.number + 1)
    state.sandboxes.save(row)
    state.sandboxes.save(younger)
    state.sandboxes.forget(row.id, row.number)
    assert state.sandboxes.load() == [plain(younger)]
    state.sandboxes.forget(younger.id, younger.number)


def test_what_is_not_there_can_be_forgotten_and_finished(state: State) -> None:
    state.executions.finish("nobody", model.Finished(model.Verdict.EXITED))
    state.executions.forget("nobody")
    state.sandboxes.forget("nobody", 1)
    assert (state.executions.load(), state.sandboxes.load()) == ([], [])


def test_old_rows_without_newer_fields_get_their_defaults(tmp_path: Path) -> None:
    row = ExecutionRow(
        id="run",
        sandbox_id="box",
        tool="python_executor",
        context="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        timeout_s=1.0,
        output_limit_bytes=None,
        idle_timeout_s=0.0,
        stdin=False,
        merge_stderr=False,
        terminal=None,
        keep_last_bytes=None,
        detach=False,
        detach_grace_s=60.0,
        on_awaiting_input=model.OnAwaitingInput.NOTICE,
        oom_kills_before=None,
        pids_limit_hits_before=None,
    )
    state = State.open(tmp_path / "state.db")
    state.executions.save(replace(row, cancelled_by="somebody"))
    without: Mapping[str, str] = {"sql": "UPDATE executions SET body = json_remove(body, '$.cancelled_by')"}
    state._database.write(without["sql"], {})
    assert state.executions.load() == [row]
    state.close()
