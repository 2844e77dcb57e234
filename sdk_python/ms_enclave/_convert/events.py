"""What happens in an execution."""

from __future__ import annotations

from typing import Final

from ms_enclave._convert.texts import local_time
from ms_enclave._model import (
    Channel,
    Event,
    ExceptionInfo,
    Finished,
    LimitHit,
    Notice,
    NoticeKind,
    Output,
    Phases,
    ResourceUsage,
    SignalSender,
    Started,
    StatsSample,
    Verdict,
)
from ms_enclave.v1 import execution_service_pb2 as pb

CHANNELS: Final = {
    pb.CHANNEL_STDOUT: Channel.STDOUT,
    pb.CHANNEL_STDERR: Channel.STDERR,
    pb.CHANNEL_TERMINAL: Channel.TERMINAL,
}
_NOTICES = {
    pb.Notice.KIND_AWAITING_INPUT: NoticeKind.AWAITING_INPUT,
    pb.Notice.KIND_GAP: NoticeKind.GAP,
    pb.Notice.KIND_CONTEXT_RESET: NoticeKind.CONTEXT_RESET,
}
_SENDERS = {
    pb.SIGNAL_SENDER_CALLER: SignalSender.CALLER,
    pb.SIGNAL_SENDER_DAEMON: SignalSender.DAEMON,
    pb.SIGNAL_SENDER_KERNEL: SignalSender.KERNEL,
}

_VERDICTS = {
    number: Verdict(name.removeprefix("VERDICT_"))
    for name, number in pb.Verdict.items()
    if name != "VERDICT_UNSPECIFIED"
}


def event(message: pb.ExecutionEvent) -> Event | None:
    """Turns an event into its model; ``None`` for a kind or a channel that this version does not know."""
    match message.WhichOneof("event"):
        case "output":
            piece = message.output
            channel = CHANNELS.get(piece.channel)
            return None if channel is None else Output(channel, piece.offset, piece.data, piece.time_s, piece.late)
        case "started":
            return _started(message.started)
        case "stats":
            sample = message.stats
            sandbox = _usage(sample.sandbox) if sample.HasField("sandbox") else None
            return StatsSample(sample.time_s, _usage(sample.execution), sandbox)
        case "notice":
            return notice(message.notice)
        case "finished":
            return finished(message.finished)
        case _:
            return None


def notice(message: pb.Notice) -> Notice:
    """Turns a notice into its model."""
    kind = _NOTICES.get(message.kind, NoticeKind.OTHER)
    return Notice(kind, message.message, CHANNELS.get(message.channel), message.offset, message.length_bytes)


def finished(message: pb.Finished) -> Finished:
    """Turns the end of an execution into its model."""
    phases = message.phases
    return Finished(
        verdict=_verdict(message.verdict),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        message=message.message,
        attested=message.attested,
        exception=ExceptionInfo(message.exception.type, message.exception.message)
        if message.HasField("exception")
        else None,
        bytes_total={CHANNELS[item.channel]: item.offset for item in message.bytes_total if item.channel in CHANNELS},
        usage=_usage(message.usage),
        phases=Phases(phases.queued_s, phases.starting_s, phases.running_s, phases.draining_s),
        state_preserved=message.state_preserved if message.HasField("state_preserved") else None,
        limits_hit={hit.limit: hit.count for hit in message.limits_hit},
        timeout_s=message.timeout_s,
        limits=tuple(LimitHit(hit.limit, hit.count, hit.peak, hit.maximum) for hit in message.limits_hit),
        signal_sender=_SENDERS.get(message.signal_sender),
        cancelled_by=message.cancelled_by,
    )


def _started(message: pb.Started) -> Started:
    return Started(
        message.execution_id,
        message.timeout_s,
        {CHANNELS[item.channel]: item.offset for item in message.offsets if item.channel in CHANNELS},
        local_time(message.create_time) if message.HasField("create_time") else None,
    )


def _usage(message: pb.ResourceUsage) -> ResourceUsage:
    return ResourceUsage(
        message.cpu_user_s,
        message.cpu_system_s,
        message.memory_peak_bytes,
        message.io_read_bytes,
        message.io_write_bytes,
        message.memory_bytes,
        message.pids,
    )


def _verdict(number: pb.Verdict.ValueType) -> Verdict:
    return _VERDICTS.get(number, Verdict.INTERNAL_ERROR)
