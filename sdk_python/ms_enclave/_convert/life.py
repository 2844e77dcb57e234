"""The life of sandboxes: filters onto the wire, histories and events from it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ms_enclave._convert.sandboxes import STATUS, sandbox_info
from ms_enclave._convert.texts import local_time, text
from ms_enclave._model import SandboxStatus
from ms_enclave._model.life import Cause, SandboxEvent, SandboxEventKind, SandboxFilter, StateChange
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

_CAUSES = {
    sandbox_pb.StateChange.CAUSE_REQUEST: Cause.REQUEST,
    sandbox_pb.StateChange.CAUSE_DAEMON: Cause.DAEMON,
    sandbox_pb.StateChange.CAUSE_ENGINE: Cause.ENGINE,
    sandbox_pb.StateChange.CAUSE_TTL: Cause.TTL,
    sandbox_pb.StateChange.CAUSE_IDLE: Cause.IDLE,
}
_KINDS = {
    sandbox_pb.WatchSandboxesResponse.KIND_CREATED: SandboxEventKind.CREATED,
    sandbox_pb.WatchSandboxesResponse.KIND_CHANGED: SandboxEventKind.CHANGED,
    sandbox_pb.WatchSandboxesResponse.KIND_DELETED: SandboxEventKind.DELETED,
}


def filter_fields(wanted: SandboxFilter) -> dict[str, Any]:
    """Writes a filter as the fields of a request. Raises `InvalidRequest`."""
    states = []
    for status in map(SandboxStatus, wanted.statuses):
        found = [state for state, shown in STATUS.items() if shown is status]
        if not found:
            raise InvalidRequest(f"statuses: no sandbox of a daemon is ever {status.value!r}")
        states += found
    labels = {text(name, "labels"): text(value, "labels") for name, value in wanted.labels.items()}
    fields: dict[str, Any] = {"labels": labels, "states": states, "tenant": text(wanted.tenant, "tenant")}
    for name, moment in (("created_before", wanted.created_before), ("created_after", wanted.created_after)):
        if moment is not None:
            fields[name] = _stamp(moment)
    return fields


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone())
    return stamp


def state_change(message: sandbox_pb.StateChange) -> StateChange:
    """Reads one change of a state."""
    return StateChange(
        local_time(message.time),
        STATUS.get(message.state, SandboxStatus.ERROR),
        message.reason,
        _CAUSES.get(message.cause, Cause.DAEMON),
    )


def event(message: sandbox_pb.WatchSandboxesResponse) -> SandboxEvent:
    """Reads one change of a sandbox, or a bookmark."""
    kind = _KINDS.get(message.kind)
    if kind is None:
        return SandboxEvent(SandboxEventKind.BOOKMARK, message.revision)
    return SandboxEvent(
        kind,
        message.revision,
        sandbox_info(message.sandbox),
        _CAUSES.get(message.cause, Cause.DAEMON),
        local_time(message.time),
        message.matches,
    )
