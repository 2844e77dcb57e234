"""Executions and contexts: how a tool is to be run, and what the daemon says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ms_enclave._convert.events import CHANNELS, finished
from ms_enclave._convert.texts import local_time, text
from ms_enclave._model import (
    Channel,
    ContextInfo,
    ExecutionInfo,
    ExecutionOptions,
    OnAwaitingInput,
    Retention,
    TerminalSize,
)
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import context_service_pb2 as context_pb
from ms_enclave.v1 import execution_service_pb2 as pb

_NUMBERS: Final = {channel: number for number, channel in CHANNELS.items()}
_RETENTIONS: Final = {
    Retention.UNTIL_ACK: pb.RETENTION_UNTIL_ACK,
    Retention.KEEP_LAST: pb.RETENTION_KEEP_LAST,
}
_ON_AWAITING: Final = {
    OnAwaitingInput.NOTICE: pb.ON_AWAITING_INPUT_NOTICE,
    OnAwaitingInput.KILL: pb.ON_AWAITING_INPUT_KILL,
}
_PLAIN: Final = {
    "execution_id": "execution_id",
    "timeout": "timeout_s",
    "idle_timeout": "idle_timeout_s",
    "output_limit_bytes": "output_limit_bytes",
    "merge_stderr": "merge_stderr",
    "stats_interval": "stats_interval_s",
    "keep_last_bytes": "keep_last_bytes",
    "detach": "detach",
    "detach_grace": "detach_grace_s",
    "context": "context",
}
"""Options that travel as they are, and the fields that they travel in."""


def tool_call(sandbox_id: str, tool: str, parameters_json: str, options: ExecutionOptions) -> pb.ExecutionSpec:
    """Writes what to run and how. Raises `InvalidRequest` naming the option that has a value of the wrong kind."""
    spec = pb.ExecutionSpec(
        sandbox_id=text(sandbox_id, "sandbox_id"), tool=text(tool, "tool_name"), parameters_json=parameters_json
    )
    for name, field in _PLAIN.items():
        value = getattr(options, name)
        if value is not None:
            _put(spec, field, value, f"options.{name}")
    spec.stdin = options.stdin is not False
    size = terminal_size(options.terminal)
    if size is not None:
        spec.terminal.CopyFrom(size)
    if options.retention is not None:
        spec.retention = _member(_RETENTIONS, Retention, options.retention, "options.retention")
    if options.on_awaiting_input is not None:
        spec.on_awaiting_input = _member(
            _ON_AWAITING, OnAwaitingInput, options.on_awaiting_input, "options.on_awaiting_input"
        )
    return spec


def terminal_size(size: TerminalSize | bool) -> pb.TerminalSize | None:
    """Writes the size of a terminal; ``None`` for none. Raises `InvalidRequest`."""
    if size is False:
        return None
    found = TerminalSize() if size is True else size
    if not isinstance(found, TerminalSize):
        raise InvalidRequest(f"terminal: must be a TerminalSize or True, and not {found!r}")
    message = pb.TerminalSize()
    _put(message, "rows", found.rows, "terminal.rows")
    _put(message, "columns", found.columns, "terminal.columns")
    return message


def offsets(found: Mapping[Channel, int]) -> list[pb.ChannelOffset]:
    """Writes positions in channels. Raises `InvalidRequest` for what is none."""
    written = []
    for channel, offset in found.items():
        message = pb.ChannelOffset(channel=_member(_NUMBERS, Channel, channel, "offsets"))
        _put(message, "offset", offset, f"offsets.{channel}")
        written.append(message)
    return written


def execution_info(message: pb.Execution) -> ExecutionInfo:
    """Turns the daemon's view of an execution into its model."""
    return ExecutionInfo(
        id=message.execution_id,
        sandbox_id=message.sandbox_id,
        tool=message.tool,
        created_at=local_time(message.create_time),
        timeout_s=message.timeout_s,
        finished=finished(message.finished) if message.state == pb.EXECUTION_STATE_ENDED else None,
        context=message.context,
        detach=message.detach,
        readers=message.readers,
        awaiting_input=message.awaiting_input,
        terminal=message.terminal,
    )


def context_info(message: context_pb.Context) -> ContextInfo:
    """Turns the daemon's view of a context into its model."""
    return ContextInfo(
        name=message.name,
        sandbox_id=message.sandbox_id,
        created_at=local_time(message.create_time),
        calls=message.calls,
        execution_id=message.execution_id,
        queued=message.queued,
        alive=message.alive,
    )


def _put(message: Any, field: str, value: object, name: str) -> None:
    if isinstance(value, bool) is not isinstance(getattr(message, field), bool):
        raise InvalidRequest(f"{name}: {value!r} is of the wrong kind")
    try:
        setattr(message, field, text(value, name) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name}: {value!r} is of the wrong kind or out of range") from None


def _member(numbers: Mapping[Any, Any], kind: type[Any], value: object, name: str) -> Any:
    try:
        return numbers[kind(value)]
    except ValueError:
        known = ", ".join(repr(one.value) for one in kind)
        raise InvalidRequest(f"{name}: {value!r} is none of {known}") from None
