"""The mapping between messages and model: every field of each is mapped, in the one place that may do so."""

import dataclasses
import enum
import json
import random
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

from enclaved import model
from enclaved.errors import InvalidRequest, NotServed
from enclaved.services import _convert as convert

# -- random values -----------------------------------------------------------------------------------------------


def fill(message: Message, rng: random.Random) -> Message:
    """Fills every field of a message, nested ones too."""
    for field in message.DESCRIPTOR.fields:
        set_field(message, field, rng)
    return message


def set_field(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[f"key_{rng.randrange(10**6)}"] = f"value_{rng.randrange(10**6)}"
    elif field.message_type is not None:
        target = getattr(message, field.name)
        fill(target.add() if field.is_repeated else target, rng)
        if not field.is_repeated:
            target.SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(scalar(field, rng))
    else:
        setattr(message, field.name, scalar(field, rng))


def scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values if value.number])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.random() + 1
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(8)
        case FieldDescriptor.CPPTYPE_STRING if field.name.endswith("_json"):
            return json.dumps({"key": rng.randrange(10**6)})
        case FieldDescriptor.CPPTYPE_STRING:
            return f"text{rng.randrange(10**6)}"
        case _:
            return rng.randrange(1, 1000)


def filled(hint: Any, rng: random.Random) -> Any:
    """Makes a value of the model with nothing left at a default."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return filled(next(argument for argument in arguments if argument is not type(None)), rng)
    if origin is tuple:
        return (filled(arguments[0], rng),)
    if origin is not None and issubclass(origin, Mapping):
        key = rng.choice(list(model.CHANNEL_NAMES)) if arguments[0] is int else filled(arguments[0], rng)
        return {key: filled(arguments[1], rng)}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        values = {field.name: filled(hints[field.name], rng) for field in dataclasses.fields(hint)}
        if "channel" in values:
            values["channel"] = rng.choice(list(model.CHANNEL_NAMES))
        return hint(**values)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return rng.choice(list(hint))
    makers = {
        bool: lambda: True,
        int: lambda: rng.randrange(1, 1000),
        float: lambda: rng.random() + 1,
        str: lambda: f"text{rng.randrange(10**6)}",
        bytes: lambda: rng.randbytes(8),
        datetime: lambda: datetime.fromtimestamp(rng.randrange(10**9), UTC),
        Any: lambda: f"any{rng.randrange(10**6)}",
    }
    return makers[hint]()


def unset_fields(message: Message, path: str = "") -> set[str]:
    """Names every field, nested ones too, that a message leaves unset."""
    found: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        value = getattr(message, field.name)
        if field.message_type is None or field.message_type is Timestamp.DESCRIPTOR:
            present = message.HasField(field.name) if field.has_presence else bool(value)
            found |= set() if present else {name}
        elif field.is_repeated:
            if not value:
                found.add(name)
            elif not field.message_type.GetOptions().map_entry:
                found |= unset_fields(value[0], f"{name}.")
        elif not message.HasField(field.name):
            found.add(name)
        else:
            found |= unset_fields(value, f"{name}.")
    return found


def ignored_fields(value: Any, shown: Any) -> set[str]:
    """Names every field of a dataclass whose change does not change what is shown of it."""
    found: set[str] = set()
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        for seed in range(20):
            other = filled(hints[field.name], random.Random(seed))
            if other != getattr(value, field.name):
                break
        if isinstance(other, bool):
            other = not getattr(value, field.name)
        if shown(dataclasses.replace(value, **{field.name: other})) == shown(value):
            found.add(field.name)
    return found


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


SERVED = ("sandbox_id", "tool", "parameters_json", "execution_id", "timeout_s", "output_limit_bytes", "stdin")
SERVED += ("merge_stderr", "detach_grace_s")


def minimal_spec() -> execution_pb.ExecutionSpec:
    return execution_pb.ExecutionSpec(sandbox_id="box", tool="python_executor", parameters_json="{}")


@pytest.mark.parametrize("field", list(execution_pb.ExecutionSpec.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_every_field_of_a_call_reaches_the_model_or_is_refused(field):
    spec = minimal_spec()
    set_field(spec, field, random.Random(1))
    if field.name == "retention":
        spec.retention = execution_pb.RETENTION_KEEP_LAST
    if field.name in SERVED:
        changed = convert.tool_call(spec, "spec", takes_input=True)
        assert changed != convert.tool_call(minimal_spec(), "spec", takes_input=True)
    else:
        with pytest.raises(NotServed, match=f"spec.{field.name}"):
            convert.tool_call(spec, "spec", takes_input=True)


def test_every_field_of_a_call_in_the_model_can_be_reached():
    spec = minimal_spec()
    for field in execution_pb.ExecutionSpec.DESCRIPTOR.fields:
        if field.name in SERVED:
            set_field(spec, field, random.Random(1))
    found = convert.tool_call(spec, "spec", takes_input=True)
    assert not [field.name for field in dataclasses.fields(found) if not getattr(found, field.name)]


def test_until_ack_is_served_because_it_is_the_default():
    spec = minimal_spec()
    spec.retention = execution_pb.RETENTION_UNTIL_ACK
    assert convert.tool_call(spec, "spec", takes_input=False) == convert.tool_call(
        minimal_spec(), "spec", takes_input=False
    )


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
    ],
)
def test_a_malformed_call_names_the_field(changes, field):
    spec = minimal_spec()
    for name, value in changes.items():
        setattr(spec, name, value)
    with pytest.raises(InvalidRequest) as caught:
        convert.tool_call(spec, "start", takes_input=True)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_input_needs_a_stream():
    spec = minimal_spec()
    spec.stdin = True
    with pytest.raises(InvalidRequest, match=r"spec\.stdin.*use Execute"):
        convert.tool_call(spec, "spec", takes_input=False)


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
    offsets = [execution_pb.ChannelOffset(channel=channel, offset=offset) for channel, offset in items]
    with pytest.raises(InvalidRequest) as caught:
        convert.offsets(offsets, "offsets")
    assert caught.value.violations[0].field == field


def test_states_are_read_by_name_and_unknown_ones_refused():
    found = convert.states([sandbox_pb.Sandbox.STATE_RUNNING, sandbox_pb.Sandbox.STATE_ERROR])
    assert found == {model.SandboxState.RUNNING, model.SandboxState.ERROR}
    for unknown in (0, 99):
        with pytest.raises(InvalidRequest):
            convert.states([unknown])  # type: ignore[list-item]


# -- onto the wire -----------------------------------------------------------------------------------------------

NOT_SENT = {
    # Wishes that no policy grants today, so no sandbox has them.
    "spec.network",
    "spec.volumes",
    "spec.ports",
    "spec.extra_hosts",
    "spec.platform",
    "spec.command",
    "spec.privileged",
}
FINISHED_NOT_SENT = {"usage.memory_bytes", "usage.pids"}  # only in samples

SHOWN = [
    (model.Sandbox, convert.sandbox, NOT_SENT),
    (model.ToolDescription, convert.tool, set()),
    (model.SystemInfo, convert.system_info, set()),
    (model.Started, lambda value: convert.event(value).started, set()),
    (model.Output, lambda value: convert.event(value).output, set()),
    (model.Notice, lambda value: convert.event(value).notice, set()),
    (model.Finished, lambda value: convert.event(value).finished, FINISHED_NOT_SENT),
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
    assert ignored == {"shm_size_bytes", "timeout_max_s"}


@pytest.mark.parametrize("part", ["usage", "phases", "exception"])
def test_every_field_of_the_parts_of_an_end_is_shown(part):
    end = filled(model.Finished, random.Random(3))
    shown = lambda value: convert.event(dataclasses.replace(end, **{part: value}))  # noqa: E731
    for_core_only = {"errno"} if part == "exception" else set()
    assert ignored_fields(getattr(end, part), shown) == for_core_only


def test_a_whole_result_is_shown():
    result = filled(model.RunResult, random.Random(3))
    response = convert.run_response(result)
    assert unset_fields(response) - {f"finished.{name}" for name in FINISHED_NOT_SENT} == {"running", "results"}
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


MESSAGES_FROM_THE_WIRE = {"SandboxSpec", "ToolSelection", "ToolConfig", "Volume", "PortMapping", "ExecutionSpec"}
MESSAGES_ONTO_THE_WIRE = {
    *("Sandbox", "Adjustment", "Tool", "EngineInfo", "Started", "Output", "Notice", "Finished", "ExceptionInfo"),
    *("Phases", "LimitHit", "ResourceUsage", "ChannelOffset", "ExecutionEvent"),
}
NOT_SENT_YET = {"StatsSample", "RichResult"}
READ_BY_SERVICES = {"OpenFile", "TerminalSize", "Stdin", "EndOfInput", "Signal", "Acknowledge", "Cancel"}


def test_no_message_of_the_contract_is_forgotten_here():
    modules = (sandbox_pb, execution_pb, system_pb, tool_pb)
    messages: list[Descriptor] = [m for module in modules for m in module.DESCRIPTOR.message_types_by_name.values()]
    names = {m.name for m in messages if not m.name.endswith(("Request", "Response"))}
    known = MESSAGES_FROM_THE_WIRE | MESSAGES_ONTO_THE_WIRE | NOT_SENT_YET | READ_BY_SERVICES
    assert names <= known
