"""Executions onto the wire: what happens in them, how they end, and the contexts that they run in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ms_enclave.v1 import context_service_pb2
from ms_enclave.v1 import execution_service_pb2 as pb

from enclaved import model
from enclaved.services._convert.common import timestamp

_NOTICES: Mapping[model.NoticeKind, pb.Notice.Kind.ValueType] = MappingProxyType(
    {
        model.NoticeKind.AWAITING_INPUT: pb.Notice.KIND_AWAITING_INPUT,
        model.NoticeKind.GAP: pb.Notice.KIND_GAP,
        model.NoticeKind.CONTEXT_RESET: pb.Notice.KIND_CONTEXT_RESET,
    }
)

_VERDICTS: Mapping[model.Verdict, pb.Verdict.ValueType] = MappingProxyType(
    {verdict: pb.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in model.Verdict}
)
_SENDERS: Mapping[model.SignalSender, pb.SignalSender.ValueType] = MappingProxyType(
    {sender: pb.SignalSender.Value(f"SIGNAL_SENDER_{sender.name}") for sender in model.SignalSender}
)


def event(found: model.Event) -> pb.ExecutionEvent:
    """Shows something that happened in an execution."""
    match found:
        case model.Output():
            return pb.ExecutionEvent(
                output=pb.Output(
                    channel=_channel(found.channel),
                    offset=found.offset,
                    data=found.data,
                    time_s=found.time_s,
                    late=found.late,
                )
            )
        case model.Started():
            return pb.ExecutionEvent(
                started=pb.Started(
                    execution_id=found.execution_id,
                    timeout_s=found.timeout_s,
                    offsets=_offsets(found.offsets),
                    create_time=timestamp(found.created_at),
                )
            )
        case model.StatsSample():
            return pb.ExecutionEvent(
                stats=pb.StatsSample(
                    time_s=found.time_s,
                    execution=_usage(found.execution),
                    sandbox=None if found.sandbox is None else _usage(found.sandbox),
                )
            )
        case model.Notice():
            return pb.ExecutionEvent(notice=_notice(found))
        case model.Finished():
            return pb.ExecutionEvent(finished=_finished(found))


def run_response(found: model.RunResult) -> pb.RunResponse:
    """Shows the whole of a short execution, or the beginning of a longer one."""
    return pb.RunResponse(
        execution_id=found.execution_id,
        stdout=found.stdout,
        stderr=found.stderr,
        finished=None if found.finished is None else _finished(found.finished),
        running=found.finished is None,
        notices=[_notice(notice) for notice in found.notices],
    )


def execution(found: model.ExecutionInfo) -> pb.Execution:
    """Shows an execution."""
    return pb.Execution(
        execution_id=found.id,
        sandbox_id=found.sandbox_id,
        tool=found.tool,
        state=pb.EXECUTION_STATE_RUNNING if found.finished is None else pb.EXECUTION_STATE_ENDED,
        create_time=timestamp(found.created_at),
        timeout_s=found.timeout_s,
        context=found.context,
        detach=found.detach,
        readers=found.readers,
        awaiting_input=found.awaiting_input,
        finished=None if found.finished is None else _finished(found.finished),
        terminal=found.terminal,
    )


def context(found: model.ContextInfo) -> context_service_pb2.Context:
    """Shows a persistent interpreter."""
    return context_service_pb2.Context(
        name=found.name,
        sandbox_id=found.sandbox_id,
        create_time=timestamp(found.created_at),
        calls=found.calls,
        execution_id=found.execution_id,
        queued=found.queued,
        alive=found.alive,
    )


def _notice(found: model.Notice) -> pb.Notice:
    return pb.Notice(
        kind=_NOTICES[found.kind],
        message=found.message,
        channel=pb.CHANNEL_UNSPECIFIED if found.channel is None else _channel(found.channel),
        offset=found.offset,
        length_bytes=found.length_bytes,
    )


def _finished(found: model.Finished) -> pb.Finished:
    return pb.Finished(
        verdict=_VERDICTS[found.verdict],
        exit_code=found.exit_code,
        signal=found.signal,
        message=found.message,
        attested=found.attested,
        exception=None
        if found.exception is None
        else pb.ExceptionInfo(type=found.exception.type, message=found.exception.message),
        bytes_total=_offsets(found.bytes_total),
        usage=_usage(found.usage),
        phases=pb.Phases(
            queued_s=found.phases.queued_s,
            starting_s=found.phases.starting_s,
            running_s=found.phases.running_s,
            draining_s=found.phases.draining_s,
        ),
        state_preserved=found.state_preserved,
        limits_hit=[
            pb.LimitHit(limit=hit.limit, count=hit.count, peak=hit.peak, maximum=hit.maximum)
            for hit in found.limits_hit
        ],
        timeout_s=found.timeout_s,
        signal_sender=pb.SIGNAL_SENDER_UNSPECIFIED if found.signal_sender is None else _SENDERS[found.signal_sender],
        cancelled_by=found.cancelled_by,
    )


def _usage(found: model.ResourceUsage) -> pb.ResourceUsage:
    return pb.ResourceUsage(
        cpu_user_s=found.cpu_user_s,
        cpu_system_s=found.cpu_system_s,
        memory_peak_bytes=found.memory_peak_bytes,
        io_read_bytes=found.io_read_bytes,
        io_write_bytes=found.io_write_bytes,
        memory_bytes=found.memory_bytes,
        pids=found.pids,
    )


def _offsets(items: Mapping[int, int]) -> list[pb.ChannelOffset]:
    return [pb.ChannelOffset(channel=_channel(channel), offset=offset) for channel, offset in sorted(items.items())]


def _channel(number: int) -> pb.Channel.ValueType:
    return pb.Channel.ValueType(number)
