"""The mapping between messages and model: every field of each is mapped, in the one place that may do so."""

import dataclasses
import enum
import random
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from ms_enclave.v1 import context_service_pb2 as context_pb
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

from enclaved import model
from enclaved.errors import InvalidRequest
from enclaved.services import _convert as convert
from tests.unit.messages import fill, filled, ignored_fields, set_field, unset_fields

# -- from the wire -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", list(sandbox_pb.SandboxSpec.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_every_field_of_a_wanted_sandbox_reaches_the_model(field):
    spec = sandbox_pb.SandboxSpec()
    set_field(spec, field, random.Random(1))
    assert convert.sandbox_request(spec) != convert.sandbox_request(sandbox_pb.SandboxSpec())


@pytest.mark.parametrize(
    "message", [sandbox_pb.Volume, sandbox_pb.PortMapping, sandbox_pb.ToolConfig], ids=lambda m: m.DESCRIPTOR.name
)
def test_every_field_of_its_parts_reaches_the_model(message: type[Message]):
    def wanted(part: Message) -> model.SandboxRequest:
        spec = sandbox_pb.SandboxSpec()
        match part:
            case sandbox_pb.Volume():
                spec.volumes.append(part)
            case sandbox_pb.PortMapping():
                spec.ports.append(part)
            case sandbox_pb.ToolConfig():
                spec.tools.tools.append(part)
        return convert.sandbox_request(spec)

    for field in message.DESCRIPTOR.fields:
        part, other = (fill(message(), random.Random(1)) for _ in range(2))
        set_field(other, field, random.Random(2))
        assert wanted(part) != wanted(other), field.name


def test_what_is_not_set_stays_unset():
    assert convert.sandbox_request(sandbox_pb.SandboxSpec()) == model.SandboxRequest()


def test_every_field_of_the_model_can_be_reached():
    spec = fill(sandbox_pb.SandboxSpec(), random.Random(1))
    found = convert.sandbox_request(spec)
    unset = {field.name for field in dataclasses.fields(found) if not getattr(found, field.name)}
    assert unset == {"documented_defaults"}  # gRPC has field presence instead


def test_an_empty_selection_of_tools_is_not_the_same_as_none():
    spec = sandbox_pb.SandboxSpec()
    spec.tools.SetInParent()
    assert convert.sandbox_request(spec).tools == {}


def test_zero_and_false_count_as_set():
    spec = sandbox_pb.SandboxSpec(timeout_s=0, network_enabled=False, remove_on_exit=False, memory_limit_bytes=0)
    found = convert.sandbox_request(spec)
    assert (found.timeout_s, found.network_enabled, found.remove_on_exit, found.memory_limit_bytes) == (
        0,
        False,
        False,
        0,
    )


def test_documented_defaults_of_parts_are_filled_in():
    spec = sandbox_pb.SandboxSpec(
        volumes=[sandbox_pb.Volume(host_path="/a", bind="/b")], ports=[sandbox_pb.PortMapping(container_port="80/tcp")]
    )
    found = convert.sandbox_request(spec)
    assert found.volumes == (model.Volume("/a", "/b", "rw"),)
    assert found.ports == (model.PortMapping("80/tcp", "127.0.0.1", 0),)


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        ([sandbox_pb.ToolConfig()], "spec.tools.tools[0].name"),
        ([sandbox_pb.ToolConfig(name="a"), sandbox_pb.ToolConfig(name="a")], "spec.tools.tools[1].name"),
        ([sandbox_pb.ToolConfig(name="a", options_json="[]")], "spec.tools.tools[0].options_json"),
    ],
)
def test_a_malformed_selection_of_tools_names_the_entry(tools, field):
    spec = sandbox_pb.SandboxSpec(tools=sandbox_pb.ToolSelection(tools=tools))
    with pytest.raises(InvalidRequest) as caught:
        convert.sandbox_request(spec)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_states_are_read_by_name_and_unknown_ones_refused():
    wanted = [sandbox_pb.Sandbox.STATE_RUNNING, sandbox_pb.Sandbox.STATE_ERROR]
    found = convert.sandbox_filter(sandbox_pb.ListSandboxesRequest(states=wanted))
    assert found.states == {model.SandboxState.RUNNING, model.SandboxState.ERROR}
    for unknown in (0, 99):
        with pytest.raises(InvalidRequest):
            convert.sandbox_filter(sandbox_pb.WatchSandboxesRequest(states=[unknown]))  # type: ignore[list-item]


def test_a_moment_that_is_none_is_refused_with_its_field():
    request = sandbox_pb.ListSandboxesRequest()
    request.created_after.seconds = 2**60
    with pytest.raises(InvalidRequest, match="created_after"):
        convert.sandbox_filter(request)


# -- onto the wire -----------------------------------------------------------------------------------------------

NOT_SENT = {
    "spec.privileged",  # no policy grants it, so no sandbox has it
}
SHOWN = [
    (model.Sandbox, convert.sandbox, NOT_SENT),
    (model.ToolDescription, convert.tool, set()),
    (model.SystemInfo, lambda value: convert.system_info(value, model.LOCAL), set()),
    (model.Started, lambda value: convert.event(value).started, set()),
    (model.Output, lambda value: convert.event(value).output, set()),
    (model.StatsSample, lambda value: convert.event(value).stats, set()),
    (model.ExecutionInfo, convert.execution, set()),
    (model.ContextInfo, convert.context, set()),
    (model.Notice, lambda value: convert.event(value).notice, set()),
    (model.Finished, lambda value: convert.event(value).finished, set()),
]


@pytest.mark.parametrize(("kind", "show", "not_sent"), SHOWN, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_of_an_answer_is_filled(kind, show, not_sent):
    assert unset_fields(show(filled(kind, random.Random(3)))) == not_sent


@pytest.mark.parametrize(("kind", "show", "not_sent"), SHOWN, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_of_the_model_is_shown(kind, show, not_sent):
    assert ignored_fields(filled(kind, random.Random(3)), show) == set()


def test_every_field_of_a_spec_is_shown_but_what_is_for_the_guest_only():
    sandbox = filled(model.Sandbox, random.Random(3))
    ignored = ignored_fields(sandbox.spec, lambda spec: convert.sandbox(dataclasses.replace(sandbox, spec=spec)))
    of_policy = {"may_pull", "role", "image_digest", "output_limit_bytes", "output_limit_max_bytes", "command_options"}
    assert ignored == {"shm_size_bytes", "timeout_max_s", "kill_at_pids_limit"} | of_policy


@pytest.mark.parametrize("part", ["usage", "phases", "exception"])
def test_every_field_of_the_parts_of_an_end_is_shown(part):
    end = filled(model.Finished, random.Random(3))
    shown = lambda value: convert.event(dataclasses.replace(end, **{part: value}))  # noqa: E731
    for_core_only = {"errno"} if part == "exception" else set()
    assert ignored_fields(getattr(end, part), shown) == for_core_only


def test_a_whole_result_is_shown():
    result = filled(model.RunResult, random.Random(3))
    response = convert.run_response(result)
    assert unset_fields(response) == {"running", "results"}
    assert ignored_fields(result, convert.run_response) == set()


def test_a_result_without_an_end_is_running():
    response = convert.run_response(model.RunResult("run", b"out", b"err", (), None))
    assert response.running
    assert not response.HasField("finished")


def test_what_an_end_does_not_know_is_absent():
    finished = convert.event(model.Finished(model.Verdict.SIGNALED, signal=9)).finished
    absent = [name for name in ("exit_code", "exception", "state_preserved") if not finished.HasField(name)]
    assert absent == ["exit_code", "exception", "state_preserved"]
    assert finished.signal == 9


def test_an_execution_that_has_not_ended_runs_and_shows_no_end():
    shown = convert.execution(dataclasses.replace(filled(model.ExecutionInfo, random.Random(3)), finished=None))
    assert shown.state == execution_pb.EXECUTION_STATE_RUNNING
    assert not shown.HasField("finished")


def test_a_sample_without_the_sandbox_has_none():
    sample = model.StatsSample(1.0, model.ResourceUsage(), None)
    assert not convert.event(sample).stats.HasField("sandbox")


def test_an_unknown_sender_of_a_signal_is_not_named():
    ended = model.Finished(model.Verdict.SIGNALED, signal=9)
    assert convert.event(ended).finished.signal_sender == execution_pb.SIGNAL_SENDER_UNSPECIFIED


@pytest.mark.parametrize("sender", list(model.SignalSender))
def test_each_sender_of_a_signal_has_its_name(sender: model.SignalSender):
    ended = model.Finished(model.Verdict.SIGNALED, signal=9, signal_sender=sender)
    shown = convert.event(ended).finished.signal_sender
    assert execution_pb.SignalSender.Name(shown) == f"SIGNAL_SENDER_{sender.name}"


def test_an_exit_code_of_zero_is_present():
    assert convert.event(model.Finished(model.Verdict.EXITED, exit_code=0)).finished.HasField("exit_code")


@pytest.mark.parametrize(
    ("ours", "descriptor"),
    [
        (model.SandboxState, sandbox_pb.Sandbox.State.DESCRIPTOR),
        (model.Verdict, execution_pb.Verdict.DESCRIPTOR),
        (model.NoticeKind, execution_pb.Notice.Kind.DESCRIPTOR),
    ],
    ids=["state", "verdict", "notice"],
)
def test_closed_lists_are_the_same_on_both_sides(ours: type[enum.Enum], descriptor: Any):
    names = [value.name.partition("_")[2] for value in descriptor.values if value.number]
    assert names == [member.name for member in ours]


def test_channels_have_the_same_numbers_on_both_sides():
    theirs = {value.number: value.name.removeprefix("CHANNEL_").lower() for value in channel_values()}
    assert theirs == model.CHANNEL_NAMES


def channel_values() -> list[Any]:
    return [value for value in execution_pb.Channel.DESCRIPTOR.values if value.number]


MESSAGES_FROM_THE_WIRE = {
    "SandboxSpec",
    "ToolSelection",
    "ToolConfig",
    "Volume",
    "PortMapping",
    "ExecutionSpec",
    "Labels",
}
MESSAGES_ONTO_THE_WIRE = {
    *("Sandbox", "Adjustment", "Tool", "EngineInfo", "Started", "Output", "Notice", "Finished", "ExceptionInfo"),
    *("Phases", "LimitHit", "ResourceUsage", "ChannelOffset", "ExecutionEvent", "StatsSample", "Execution", "Context"),
    *("StateChange", "Protection", "Identity"),
}
NOT_SENT_YET = {"RichResult"}
READ_BY_SERVICES = {"OpenFile", "TerminalSize", "Stdin", "EndOfInput", "Signal", "Acknowledge", "Cancel"}


def test_no_message_of_the_contract_is_forgotten_here():
    modules = (sandbox_pb, execution_pb, context_pb, system_pb, tool_pb)
    messages: list[Descriptor] = [m for module in modules for m in module.DESCRIPTOR.message_types_by_name.values()]
    names = {m.name for m in messages if not m.name.endswith(("Request", "Response"))}
    known = MESSAGES_FROM_THE_WIRE | MESSAGES_ONTO_THE_WIRE | NOT_SENT_YET | READ_BY_SERVICES
    assert names <= known
