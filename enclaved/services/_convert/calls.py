"""Executions from the wire: what to run, and what a caller says to one that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from ms_enclave.v1 import execution_service_pb2 as pb

from enclaved import model
from enclaved.core.policy import check_context_name
from enclaved.errors import InvalidRequest
from enclaved.services import _fields as fields

STATS_INTERVAL_MIN_S: Final = 0.05
KEEP_LAST_MIN_BYTES: Final = 4 * 1024
KEEP_LAST_MAX_BYTES: Final = 4 * 1024 * 1024
DETACH_GRACE_DEFAULT_S: Final = 60.0
WAIT_DEFAULT_S: Final = 60.0
WAIT_MAX_S: Final = 3600.0
SIGNAL_MAX: Final = 64
TERMINAL_SIDE_MAX: Final = 65535
TERMINAL_DEFAULT: Final = model.TerminalSize(rows=24, columns=80)

ValueT = TypeVar("ValueT")

_RETENTIONS: Mapping[int, model.Retention | None] = MappingProxyType(
    {
        pb.RETENTION_UNSPECIFIED: None,
        pb.RETENTION_UNTIL_ACK: model.Retention.UNTIL_ACK,
        pb.RETENTION_KEEP_LAST: model.Retention.KEEP_LAST,
    }
)
_ON_AWAITING_INPUT: Mapping[int, model.OnAwaitingInput] = MappingProxyType(
    {
        pb.ON_AWAITING_INPUT_UNSPECIFIED: model.OnAwaitingInput.NOTICE,
        pb.ON_AWAITING_INPUT_NOTICE: model.OnAwaitingInput.NOTICE,
        pb.ON_AWAITING_INPUT_KILL: model.OnAwaitingInput.KILL,
    }
)
_RUNNING: Mapping[int, bool | None] = MappingProxyType(
    {
        pb.EXECUTION_STATE_UNSPECIFIED: None,
        pb.EXECUTION_STATE_RUNNING: True,
        pb.EXECUTION_STATE_ENDED: False,
    }
)


def tool_call(spec: pb.ExecutionSpec, field: str, *, streamed: bool, in_pool: bool = False) -> model.ToolCall:
    """Reads what to run. ``field`` is where the spec stands in the request: ``spec`` or ``start``.

    ``streamed``: the caller sends input and gets events; otherwise it gets one answer. ``in_pool``: the pool chooses
    the sandbox, so the spec names none.
    """
    if not streamed:
        _refuse_what_needs_a_stream(spec, field)
    if in_pool and spec.detach:
        text = "is not possible in a pool, whose members are reset after each call; use a sandbox of your own"
        raise InvalidRequest.of(f"{field}.detach", text)
    if not spec.tool:
        raise InvalidRequest.of(f"{field}.tool", "is missing")
    if spec.HasField("output_limit_bytes") and spec.output_limit_bytes < 1:
        raise InvalidRequest.of(f"{field}.output_limit_bytes", f"must be at least 1, is {spec.output_limit_bytes}")
    if spec.context:
        check_context_name(spec.context, f"{field}.context")
    grace_s = spec.detach_grace_s if spec.HasField("detach_grace_s") else DETACH_GRACE_DEFAULT_S
    terminal = spec.HasField("terminal")
    return model.ToolCall(
        sandbox_id=fields.sandbox_id(spec.sandbox_id, f"{field}.sandbox_id", required=not in_pool),
        tool=spec.tool,
        parameters=fields.json_object(spec.parameters_json, f"{field}.parameters_json"),
        execution_id=fields.execution_id(spec.execution_id, f"{field}.execution_id", required=False),
        timeout_s=fields.amount(spec.timeout_s, f"{field}.timeout_s") if spec.HasField("timeout_s") else None,
        output_limit_bytes=spec.output_limit_bytes if spec.HasField("output_limit_bytes") else None,
        stdin=spec.stdin or terminal,
        merge_stderr=spec.merge_stderr,
        detach_grace_s=fields.amount(grace_s, f"{field}.detach_grace_s"),
        idle_timeout_s=fields.amount(spec.idle_timeout_s, f"{field}.idle_timeout_s"),
        terminal=_first_size(spec.terminal, f"{field}.terminal") if terminal else None,
        retention=_known(_RETENTIONS, spec.retention, f"{field}.retention"),
        keep_last_bytes=_keep_last_bytes(spec, field),
        detach=spec.detach,
        context=spec.context,
        on_awaiting_input=_known(_ON_AWAITING_INPUT, spec.on_awaiting_input, f"{field}.on_awaiting_input"),
    )


def _refuse_what_needs_a_stream(spec: pb.ExecutionSpec, field: str) -> None:
    if spec.stdin:
        raise InvalidRequest.of(f"{field}.stdin", "needs a stream to send input on; use Execute")
    if spec.HasField("stats_interval_s"):
        raise InvalidRequest.of(f"{field}.stats_interval_s", "needs a stream to send samples on; use Execute or Attach")
    if spec.HasField("terminal") and not spec.detach:
        text = "needs a stream to show the terminal on; use Execute, or `detach` and Attach"
        raise InvalidRequest.of(f"{field}.terminal", text)


def _keep_last_bytes(spec: pb.ExecutionSpec, field: str) -> int | None:
    if not spec.HasField("keep_last_bytes"):
        return None
    name = f"{field}.keep_last_bytes"
    keeps_last = spec.retention == pb.RETENTION_KEEP_LAST
    if not keeps_last and not (spec.detach and spec.retention == pb.RETENTION_UNSPECIFIED):
        raise InvalidRequest.of(name, "is for the retention KEEP_LAST only, which this execution does not have")
    if not KEEP_LAST_MIN_BYTES <= spec.keep_last_bytes <= KEEP_LAST_MAX_BYTES:
        text = f"must be from {KEEP_LAST_MIN_BYTES} to {KEEP_LAST_MAX_BYTES}, is {spec.keep_last_bytes}"
        raise InvalidRequest.of(name, text)
    return spec.keep_last_bytes


def stats_interval_s(message: pb.ExecutionSpec | pb.AttachRequest, field: str) -> float | None:
    """Reads how often a caller wants samples; ``None``: never. ``field`` is where the message stands, with its dot."""
    if not message.HasField("stats_interval_s"):
        return None
    name = f"{field}stats_interval_s"
    if fields.amount(message.stats_interval_s, name) < STATS_INTERVAL_MIN_S:
        text = f"must be at least {STATS_INTERVAL_MIN_S}, is {message.stats_interval_s}; leave it out for no samples"
        raise InvalidRequest.of(name, text)
    return message.stats_interval_s


def _first_size(size: pb.TerminalSize, field: str) -> model.TerminalSize:
    """Reads the size of a new terminal: 24 lines of 80 characters, unless it says otherwise."""
    return model.TerminalSize(
        rows=_side(size.rows or TERMINAL_DEFAULT.rows, f"{field}.rows"),
        columns=_side(size.columns or TERMINAL_DEFAULT.columns, f"{field}.columns"),
    )


def terminal_size(size: pb.TerminalSize, field: str) -> model.TerminalSize:
    """Reads the new size of a terminal."""
    return model.TerminalSize(rows=_side(size.rows, f"{field}.rows"), columns=_side(size.columns, f"{field}.columns"))


def _side(value: int, field: str) -> int:
    if not 1 <= value <= TERMINAL_SIDE_MAX:
        raise InvalidRequest.of(field, f"must be from 1 to {TERMINAL_SIDE_MAX}, is {value}")
    return value


def signal_number(signal: pb.Signal, field: str) -> int:
    """Reads which signal to send."""
    if not 1 <= signal.signal <= SIGNAL_MAX:
        raise InvalidRequest.of(f"{field}.signal", f"must be from 1 to {SIGNAL_MAX}, is {signal.signal}")
    return signal.signal


def offsets(items: Iterable[pb.ChannelOffset], field: str) -> dict[int, int]:
    """Reads positions in channels."""
    found: dict[int, int] = {}
    for index, item in enumerate(items):
        if item.channel not in model.CHANNEL_NAMES:
            raise InvalidRequest.of(
                f"{field}[{index}].channel", f"must be stdout, stderr or terminal, is {item.channel}"
            )
        if item.channel in found:
            raise InvalidRequest.of(f"{field}[{index}].channel", "is named a second time")
        found[item.channel] = fields.not_negative(item.offset, f"{field}[{index}].offset")
    return found


def wait_s(request: pb.WaitExecutionRequest) -> float:
    """Reads how long a caller wants to wait."""
    if not request.HasField("wait_s"):
        return WAIT_DEFAULT_S
    if fields.amount(request.wait_s, "wait_s") > WAIT_MAX_S:
        raise InvalidRequest.of("wait_s", f"must be at most {WAIT_MAX_S:g}, is {request.wait_s:g}; wait again after it")
    return request.wait_s


def is_running(state: pb.ExecutionState.ValueType) -> bool | None:
    """Reads the state that a listing asks for; ``None``: any."""
    return _known(_RUNNING, state, "state")


def _known(values: Mapping[int, ValueT], value: int, field: str) -> ValueT:
    if value not in values:
        raise InvalidRequest.of(field, f"has the unknown value {value}")
    return values[value]
