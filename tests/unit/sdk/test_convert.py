"""Models travel as the contract says, and no field is forgotten."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from ms_enclave import _convert as convert
from ms_enclave.errors import InvalidRequest
from ms_enclave.sandbox.model import (
    Channel,
    DockerSandboxConfig,
    ExecutionOptions,
    Finished,
    Notice,
    NoticeKind,
    OnAwaitingInput,
    Output,
    Retention,
    SandboxStatus,
    Started,
    TerminalSize,
    ToolInfo,
    Verdict,
)
from ms_enclave.v1 import context_service_pb2 as context_pb
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

EVERYTHING = DockerSandboxConfig(
    image="img",
    memory_limit="512m",
    cpu_limit=1.5,
    working_dir="/app",
    env_vars={"A": "1"},
    timeout=0,
    remove_on_exit=False,
    network_enabled=True,
    network="bridge",
    volumes={"/data": {"bind": "/in", "mode": "ro"}, "/x": {"bind": "/y"}},
    ports={"80/tcp": 8080, "81/tcp": "8081", "82/tcp": "127.0.0.1:8082", "83/tcp": ("127.0.0.1", 8083), "84/tcp": None},
    extra_hosts={"db": "10.0.0.1"},
    platform="linux/amd64",
    command="sleep 'a b'",
    privileged=False,
    auto_resume=True,
    runtime_class="runsc",
    resource_limits={"pids_limit": 64, "working_dir_size": "64m", "tmp_size": 1024, "ttl": 60, "idle_timeout": 30},
)


def fill(message: Message, depth: int = 0) -> None:
    """Gives every field a value that is not its default, one item to every list and map."""
    for number, field in enumerate(message.DESCRIPTOR.fields, start=1):
        if field.containing_oneof is not None and not field.has_presence:
            continue
        value: Any = _value(field, number)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["k"] = "v"
        elif field.message_type is not None:
            target = getattr(message, field.name)
            inner = target.add() if field.is_repeated else target
            inner.SetInParent()
            if depth < 5:
                fill(inner, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def _value(field: FieldDescriptor, number: int) -> Any:
    if field.name.endswith("_json"):
        return '{"a":1}'
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"b" if field.type == FieldDescriptor.TYPE_BYTES else f"s{number}"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return 1
        case _:
            return number


def unread(message: Any, convert_one: Any) -> set[str]:
    """Returns the fields whose absence changes nothing in what they are converted to."""
    whole = convert_one(message)
    found = set()
    for field in message.DESCRIPTOR.fields:
        less = type(message)()
        less.CopyFrom(message)
        less.ClearField(field.name)
        if convert_one(less) == whole:
            found.add(field.name)
    return found


def test_a_configuration_that_asks_for_nothing_sends_nothing() -> None:
    assert convert.spec(DockerSandboxConfig(), None) == sandbox_pb.SandboxSpec()


def test_only_what_was_set_is_sent() -> None:
    sent = convert.spec(DockerSandboxConfig(memory_limit="4g", network_enabled=True), None)
    assert {field.name for field, _ in sent.ListFields()} == {"memory_limit_bytes", "network_enabled"}


def test_every_field_of_a_request_can_be_set() -> None:
    sent = convert.spec(EVERYTHING, {"python_executor": {"timeout": 5}, "bash": {}})
    missing = {field.name for field in sent.DESCRIPTOR.fields} - {field.name for field, _ in sent.ListFields()}
    assert missing == set()
    assert sent.memory_limit_bytes == 512 * 1024**2
    assert sent.working_dir_size_bytes == 64 * 1024**2
    assert list(sent.command) == ["sleep", "a b"]
    assert {(v.host_path, v.bind, v.mode) for v in sent.volumes} == {("/data", "/in", "ro"), ("/x", "/y", "")}
    assert [(p.container_port, p.host_address, p.host_port) for p in sent.ports] == [
        ("80/tcp", "", 8080),
        ("81/tcp", "", 8081),
        ("82/tcp", "127.0.0.1", 8082),
        ("83/tcp", "127.0.0.1", 8083),
        ("84/tcp", "", 0),
    ]
    assert [(t.name, t.options_json) for t in sent.tools.tools] == [("python_executor", '{"timeout":5}'), ("bash", "")]


def test_no_tools_are_sent_as_a_selection_of_none() -> None:
    assert convert.spec(DockerSandboxConfig(), {}).HasField("tools")


def test_what_a_sandbox_has_shows_under_the_documented_names() -> None:
    shown = convert.effective_config(convert.spec(EVERYTHING, {"python_executor": {"timeout": 5}}))
    assert (
        DockerSandboxConfig.model_validate(shown).model_dump()
        == DockerSandboxConfig.model_validate(
            {
                **EVERYTHING.model_dump(),
                "command": ["sleep", "a b"],
                "tools_config": {"python_executor": {"timeout": 5}},
                "volumes": {"/data": {"bind": "/in", "mode": "ro"}, "/x": {"bind": "/y", "mode": "rw"}},
                "ports": {f"8{n}/tcp": ("127.0.0.1", (0 if n == 4 else 8080 + n)) for n in range(5)},
                "resource_limits": {
                    "pids_limit": 64,
                    "working_dir_size": 64 * 1024**2,
                    "tmp_size": 1024,
                    "ttl": 60,
                    "idle_timeout": 30,
                },
            }
        ).model_dump()
    )


def test_every_field_of_a_sandbox_is_read() -> None:
    message = sandbox_pb.Sandbox()
    fill(message)
    message.spec.remove_on_exit = False  # not the default
    assert unread(message, convert.sandbox_info) == set()
    assert unread(message.spec, convert.effective_config) == set()


def test_a_sandbox_that_has_no_network_says_so() -> None:
    info = convert.sandbox_info(sandbox_pb.Sandbox(id="a", state=sandbox_pb.Sandbox.STATE_RUNNING))
    assert (info.config["network_enabled"], info.config["network"]) == (False, "none")


@pytest.mark.parametrize("state", [n for n in sandbox_pb.Sandbox.State.values() if n])
def test_every_state_shows(state: sandbox_pb.Sandbox.State.ValueType) -> None:
    info = convert.sandbox_info(sandbox_pb.Sandbox(id="a", state=state))
    shown = "PAUSED" if info.metadata.get("paused") else info.status.name
    name = sandbox_pb.Sandbox.State.Name(state).replace("DELETING", "STOPPING")  # nothing else has a documented name
    assert f"STATE_{shown}" == name


def test_a_state_of_the_future_shows_as_an_error() -> None:
    message = sandbox_pb.Sandbox.FromString(sandbox_pb.Sandbox(id="a").SerializeToString() + b"\x10\x63")
    assert convert.sandbox_info(message).status is SandboxStatus.ERROR


def test_every_field_of_the_end_is_read() -> None:
    message = execution_pb.Finished()
    fill(message)
    assert unread(message, convert.finished) == set()
    assert unread(message.phases, lambda m: convert.finished(execution_pb.Finished(verdict=1, phases=m))) == set()
    assert unread(message.usage, lambda m: convert.finished(execution_pb.Finished(verdict=1, usage=m))) == set()
    (hit,) = message.limits_hit
    assert unread(hit, lambda m: convert.finished(execution_pb.Finished(verdict=1, limits_hit=[m]))) == set()


@pytest.mark.parametrize("number", [n for n in execution_pb.Verdict.values() if n])
def test_every_verdict_has_its_name(number: execution_pb.Verdict.ValueType) -> None:
    found = convert.finished(execution_pb.Finished(verdict=number))
    assert f"VERDICT_{found.verdict.value}" == execution_pb.Verdict.Name(number)
    assert len(Verdict) == len(execution_pb.Verdict.values()) - 1


def test_an_end_without_a_verdict_is_a_fault() -> None:
    assert convert.finished(execution_pb.Finished()).verdict is Verdict.INTERNAL_ERROR


def test_events_become_their_models() -> None:
    def event(**fields: Any) -> Any:
        return convert.event(execution_pb.ExecutionEvent(**fields))

    started = event(started=execution_pb.Started(execution_id="x", timeout_s=3))
    output = event(output=execution_pb.Output(channel=execution_pb.CHANNEL_STDERR, offset=2, data=b"d", time_s=0.5))
    gap = execution_pb.Notice(kind=execution_pb.Notice.KIND_GAP, message="m", channel=1, offset=3, length_bytes=4)
    assert started == Started("x", 3.0)
    assert output == Output(Channel.STDERR, 2, b"d", 0.5)
    assert event(notice=gap) == Notice(NoticeKind.GAP, "m", Channel.STDOUT, 3, 4)
    assert isinstance(event(finished=execution_pb.Finished(verdict=1)), Finished)


def test_events_of_the_future_are_passed_over() -> None:
    assert convert.event(execution_pb.ExecutionEvent(result=execution_pb.RichResult())) is None
    assert convert.event(execution_pb.ExecutionEvent(output=execution_pb.Output(channel=0, data=b"?"))) is None
    assert convert.event(execution_pb.ExecutionEvent()) is None


@pytest.mark.parametrize("name", ["started", "output", "stats", "notice"])
def test_every_field_of_an_event_is_read(name: str) -> None:
    message = execution_pb.ExecutionEvent()
    fill(getattr(message, name))
    read = getattr(message, name)
    assert unread(read, lambda m: convert.event(execution_pb.ExecutionEvent(**{name: m}))) == set()


def test_every_field_of_an_execution_is_read() -> None:
    message = execution_pb.Execution()
    fill(message)
    message.state = execution_pb.EXECUTION_STATE_ENDED
    assert unread(message, convert.execution_info) == set()


def test_every_field_of_a_context_is_read() -> None:
    message = context_pb.Context()
    fill(message)
    assert unread(message, convert.context_info) == set()


OPTIONS = ExecutionOptions(
    execution_id="mine",
    timeout=0,
    idle_timeout=1.5,
    output_limit_bytes=10,
    stdin=b"data",
    merge_stderr=True,
    terminal=TerminalSize(10, 20),
    stats_interval=0.5,
    retention=Retention.KEEP_LAST,
    keep_last_bytes=4096,
    detach=True,
    detach_grace=0,
    context="c",
    on_awaiting_input=OnAwaitingInput.KILL,
)


def test_every_field_of_a_call_can_be_set() -> None:
    sent = convert.tool_call("box", "python_executor", "{}", OPTIONS)
    assert {field.name for field in sent.DESCRIPTOR.fields} == {field.name for field, _ in sent.ListFields()}
    assert (sent.timeout_s, sent.terminal.rows, sent.terminal.columns, sent.stdin) == (0, 10, 20, True)


def test_options_that_were_left_alone_are_not_sent() -> None:
    sent = convert.tool_call("box", "bash", "{}", ExecutionOptions())
    assert {field.name for field, _ in sent.ListFields()} == {"sandbox_id", "tool", "parameters_json"}
    terminal = convert.tool_call("box", "bash", "{}", ExecutionOptions(terminal=True)).terminal
    assert (terminal.rows, terminal.columns) == (24, 80)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": "30"}, "options.timeout"),
        ({"timeout": True}, "options.timeout"),
        ({"output_limit_bytes": 2**70}, "options.output_limit_bytes"),
        ({"detach": 1}, "options.detach"),
        ({"execution_id": "\ud800"}, "options.execution_id"),
        ({"retention": "for ever"}, "options.retention"),
        ({"on_awaiting_input": "cry"}, "options.on_awaiting_input"),
        ({"terminal": TerminalSize(-1, 80)}, "terminal.rows"),
        ({"terminal": 80}, "terminal"),
    ],
)
def test_options_that_cannot_travel_are_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        convert.tool_call("box", "bash", "{}", ExecutionOptions(**options))


def test_positions_are_written_by_channel() -> None:
    (sent,) = convert.offsets({Channel.STDERR: 5})
    assert (sent.channel, sent.offset) == (execution_pb.CHANNEL_STDERR, 5)
    with pytest.raises(InvalidRequest, match="none of 'stdout', 'stderr', 'terminal'"):
        convert.offsets(dict[Any, int](stdlog=5))


def test_every_field_of_a_tool_is_read() -> None:
    message = tool_pb.Tool()
    fill(message)

    def read(one: tool_pb.Tool) -> ToolInfo:
        return convert.tool_info(tool_pb.Tool(**{"schema_json": "{}", **{f.name: v for f, v in one.ListFields()}}))

    assert unread(message, read) == set()


def test_every_field_of_a_daemon_is_read() -> None:
    message = system_pb.GetInfoResponse()
    fill(message)
    message.start_time.seconds = 1

    def read(one: Any) -> Any:
        found = convert.health(one)
        return found.model_copy(update={"uptime": round(found.uptime / 1e6)})

    assert unread(message, read) <= {"start_time"}
    assert convert.health(system_pb.GetInfoResponse()).uptime > convert.health(message).uptime


def test_parameters_are_written_as_they_are() -> None:
    text = convert.to_json({"code": "print('ü')", "n": 1, "big": 2**60}, "parameters")
    assert json.loads(text) == {"code": "print('ü')", "n": 1, "big": 2**60}


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"code": "\ud800"}, "parameters.code", "not valid Unicode"),
        ({"code": "1", "timeout": float("nan")}, "parameters.timeout", "cannot be written as JSON"),
        ({"a": 1, "n": [object()]}, "parameters.n", "cannot be written as JSON"),
        ({"a": 1, "\ud800": 2}, "parameters", "not valid Unicode"),
        ({"code": "x" * 50_000_000}, "parameters", "put_file"),
    ],
)
def test_parameters_that_cannot_travel_are_refused_by_name_with_a_way_out(
    value: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: .*{reason}"):
        convert.to_json(value, "parameters")


def test_parameters_that_never_end_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        convert.to_json(endless, "parameters")
