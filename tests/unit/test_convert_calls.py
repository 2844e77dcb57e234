"""Calls from the wire: every wish of an execution reaches the model, and what is malformed names its field."""

import dataclasses
import enum
import random
from typing import Any

import pytest
from ms_enclave.v1 import execution_service_pb2 as pb

from enclaved import model
from enclaved.errors import InvalidRequest
from enclaved.services import _convert as convert
from tests.unit.messages import fill, set_field


def minimal_spec(**changes: Any) -> pb.ExecutionSpec:
    return pb.ExecutionSpec(
        **{"sandbox_id": "box", "tool": "python_executor", "parameters_json": "{}", **changes}  # type: ignore[arg-type]
    )


def read(spec: pb.ExecutionSpec) -> model.ToolCall:
    return convert.tool_call(spec, "start", streamed=True)


def refused_field(spec: pb.ExecutionSpec, *, streamed: bool = True, in_pool: bool = False) -> str:
    with pytest.raises(InvalidRequest) as caught:
        convert.tool_call(spec, "start", streamed=streamed, in_pool=in_pool)
    (violation,) = caught.value.violations
    return violation.field


FOR_THE_STREAM = {"stats_interval_s"}
KEEPS_LAST = {"retention": pb.RETENTION_KEEP_LAST}


@pytest.mark.parametrize("field", list(pb.ExecutionSpec.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_every_field_of_a_call_reaches_the_model(field):
    if field.name in FOR_THE_STREAM:
        return
    before = minimal_spec(**(KEEPS_LAST if field.name == "keep_last_bytes" else {}))
    after = pb.ExecutionSpec.FromString(before.SerializeToString())
    set_field(after, field, random.Random(1))
    match field.name:
        case "keep_last_bytes":
            after.keep_last_bytes = 4096
        case "on_awaiting_input":
            after.on_awaiting_input = pb.ON_AWAITING_INPUT_KILL
    assert read(after) != read(before)


def test_every_field_of_a_call_in_the_model_can_be_reached():
    spec = fill(pb.ExecutionSpec(), random.Random(1))
    assert isinstance(spec, pb.ExecutionSpec)
    spec.sandbox_id = "box"
    spec.retention = pb.RETENTION_KEEP_LAST
    spec.keep_last_bytes = 4096
    found = read(spec)
    assert not [field.name for field in dataclasses.fields(found) if not getattr(found, field.name)]


def test_a_call_that_sets_nothing_more_has_the_documented_defaults():
    assert read(minimal_spec()) == model.ToolCall("box", "python_executor", {})


def test_an_interval_of_samples_is_read_beside_the_call():
    assert convert.stats_interval_s(minimal_spec(), "start.") is None
    assert convert.stats_interval_s(minimal_spec(stats_interval_s=0.05), "start.") == 0.05
    assert convert.stats_interval_s(pb.AttachRequest(stats_interval_s=2), "") == 2


@pytest.mark.parametrize("seconds", [0, 0.049, -1, float("nan"), float("inf")])
def test_samples_without_a_pause_or_with_a_malformed_one_are_refused(seconds: float):
    with pytest.raises(InvalidRequest) as caught:
        convert.stats_interval_s(minimal_spec(stats_interval_s=seconds), "start.")
    assert caught.value.violations[0].field == "start.stats_interval_s"


def test_a_terminal_has_an_input_and_a_size_of_its_own():
    call = read(minimal_spec(terminal=pb.TerminalSize()))
    assert (call.stdin, call.terminal) == (True, model.TerminalSize(rows=24, columns=80))
    call = read(minimal_spec(terminal=pb.TerminalSize(rows=65535, columns=1)))
    assert call.terminal == model.TerminalSize(rows=65535, columns=1)


@pytest.mark.parametrize(
    ("size", "field"),
    [({"rows": 65536}, "start.terminal.rows"), ({"rows": 5, "columns": 2**32 - 1}, "start.terminal.columns")],
)
def test_a_terminal_of_an_impossible_size_is_refused(size: dict[str, int], field: str):
    assert refused_field(minimal_spec(terminal=pb.TerminalSize(**size))) == field


def test_a_new_size_must_name_both_sides():
    assert convert.terminal_size(pb.TerminalSize(rows=50, columns=132), "resize") == model.TerminalSize(50, 132)
    with pytest.raises(InvalidRequest) as caught:
        convert.terminal_size(pb.TerminalSize(rows=50), "resize")
    assert caught.value.violations[0].field == "resize.columns"


@pytest.mark.parametrize("changes", [KEEPS_LAST, {"detach": True}, {"detach": True, **KEEPS_LAST}])
@pytest.mark.parametrize("kept", [4096, 4 * 2**20])
def test_what_keeps_the_last_output_may_say_how_much(changes: dict[str, Any], kept: int):
    assert read(minimal_spec(keep_last_bytes=kept, **changes)).keep_last_bytes == kept


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retention": pb.RETENTION_UNTIL_ACK},
        {"retention": pb.RETENTION_UNTIL_ACK, "detach": True},
    ],
)
def test_other_retentions_have_one_bound(changes: dict[str, Any]):
    assert refused_field(minimal_spec(keep_last_bytes=8192, **changes)) == "start.keep_last_bytes"


@pytest.mark.parametrize("kept", [-1, 0, 4095, 4 * 2**20 + 1, 2**63 - 1])
def test_the_last_output_is_kept_within_bounds(kept: int):
    assert refused_field(minimal_spec(keep_last_bytes=kept, **KEEPS_LAST)) == "start.keep_last_bytes"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sandbox_id": ""}, "start.sandbox_id"),
        ({"sandbox_id": "../etc"}, "start.sandbox_id"),
        ({"sandbox_id": "x" * 1_000_000}, "start.sandbox_id"),
        ({"tool": ""}, "start.tool"),
        ({"execution_id": "a b"}, "start.execution_id"),
        ({"execution_id": "a\n"}, "start.execution_id"),
        ({"timeout_s": -1}, "start.timeout_s"),
        ({"timeout_s": float("nan")}, "start.timeout_s"),
        ({"timeout_s": float("inf")}, "start.timeout_s"),
        ({"detach_grace_s": float("-inf")}, "start.detach_grace_s"),
        ({"output_limit_bytes": 0}, "start.output_limit_bytes"),
        ({"output_limit_bytes": -5}, "start.output_limit_bytes"),
        ({"parameters_json": ""}, "start.parameters_json"),
        ({"parameters_json": "print(1)"}, "start.parameters_json"),
        ({"retention": 99}, "start.retention"),
        ({"idle_timeout_s": -0.5}, "start.idle_timeout_s"),
        ({"idle_timeout_s": float("nan")}, "start.idle_timeout_s"),
        ({"on_awaiting_input": 99}, "start.on_awaiting_input"),
        ({"context": "../x"}, "start.context"),
        ({"context": "x" * 65}, "start.context"),
    ],
)
def test_a_malformed_call_names_the_field(changes: dict[str, Any], field: str):
    assert refused_field(minimal_spec(**changes)) == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stdin": True}, "start.stdin"),
        ({"stdin": True, "detach": True}, "start.stdin"),
        ({"stats_interval_s": 1}, "start.stats_interval_s"),
        ({"terminal": pb.TerminalSize()}, "start.terminal"),
    ],
)
def test_what_needs_a_stream_is_refused_without_one(changes: dict[str, Any], field: str):
    assert refused_field(minimal_spec(**changes), streamed=False) == field
    read(minimal_spec(**changes))


def test_a_detached_terminal_needs_no_stream_yet():
    spec = minimal_spec(terminal=pb.TerminalSize(), detach=True)
    assert convert.tool_call(spec, "spec", streamed=False).terminal is not None


def test_a_pool_runs_nothing_detached():
    spec = minimal_spec(sandbox_id="", detach=True)
    assert refused_field(spec, streamed=False, in_pool=True) == "start.detach"


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([(0, 1)], "offsets[0].channel"),
        ([(77, 1)], "offsets[0].channel"),
        ([(1, 1), (1, 2)], "offsets[1].channel"),
        ([(1, -1)], "offsets[0].offset"),
    ],
)
def test_malformed_offsets_name_the_entry(items, field):
    offsets = [pb.ChannelOffset(channel=channel, offset=offset) for channel, offset in items]
    with pytest.raises(InvalidRequest) as caught:
        convert.offsets(offsets, "offsets")
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("number", [1, 9, 64])
def test_a_signal_is_a_number_that_linux_has(number: int):
    assert convert.signal_number(pb.Signal(signal=number), "signal") == number


@pytest.mark.parametrize("number", [-1, 0, 65, 2**31 - 1])
def test_other_numbers_are_no_signals(number: int):
    with pytest.raises(InvalidRequest) as caught:
        convert.signal_number(pb.Signal(signal=number), "signal")
    assert caught.value.violations[0].field == "signal.signal"


def test_a_wait_has_a_default_and_a_limit():
    assert convert.wait_s(pb.WaitExecutionRequest()) == 60
    assert convert.wait_s(pb.WaitExecutionRequest(wait_s=0)) == 0
    assert convert.wait_s(pb.WaitExecutionRequest(wait_s=3600)) == 3600


@pytest.mark.parametrize("seconds", [-1, 3600.1, float("nan"), float("inf")])
def test_a_wait_beyond_the_limit_is_refused(seconds: float):
    with pytest.raises(InvalidRequest) as caught:
        convert.wait_s(pb.WaitExecutionRequest(wait_s=seconds))
    assert caught.value.violations[0].field == "wait_s"


def test_the_states_of_a_listing_are_read_and_unknown_ones_refused():
    wanted = [pb.EXECUTION_STATE_UNSPECIFIED, pb.EXECUTION_STATE_RUNNING, pb.EXECUTION_STATE_ENDED]
    assert [convert.is_running(state) for state in wanted] == [None, True, False]
    with pytest.raises(InvalidRequest):
        convert.is_running(99)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(model.Retention, pb.Retention), (model.OnAwaitingInput, pb.OnAwaitingInput)],
    ids=["retention", "on_awaiting_input"],
)
def test_closed_lists_of_wishes_are_the_same_on_both_sides(ours: type[enum.Enum], theirs: Any):
    names = [name for name, number in theirs.items() if number]
    assert [name.endswith(f"_{member.name}") for name, member in zip(names, ours, strict=True)] == [True] * len(names)
