"""A whole result, as it comes together."""

from __future__ import annotations

from ms_enclave import _convert as convert
from ms_enclave import _results as results
from ms_enclave._model import Channel, Event, Finished, Notice, Output
from ms_enclave.errors import InternalError
from ms_enclave.v1 import execution_service_pb2 as pb


class Gathered:
    """The output, the notices and the end of one execution."""

    def __init__(self, answer: pb.RunResponse) -> None:
        """``answer``: what is there already."""
        self._output = {Channel.STDOUT: bytearray(answer.stdout), Channel.STDERR: bytearray(answer.stderr)}
        self._notices = [convert.notice(notice) for notice in answer.notices]
        self._finished = convert.finished(answer.finished) if answer.HasField("finished") else None

    def offsets(self) -> dict[Channel, int]:
        """Returns the next offset wanted for each channel."""
        return {channel: len(data) for channel, data in self._output.items()}

    def add(self, event: Event) -> None:
        """Takes up what happened next."""
        match event:
            case Output():
                self._output.setdefault(event.channel, bytearray()).extend(event.data)
            case Notice():
                self._notices.append(event)
            case Finished():
                self._finished = event

    def outcome(self, execution_id: str) -> results.Outcome:
        """Returns the whole. Raises `InternalError` if the daemon never said how it ended."""
        if self._finished is None:
            raise InternalError(f"the daemon did not say how execution {execution_id} ended")
        output = {channel: bytes(data) for channel, data in self._output.items()}
        stdout = output[Channel.STDOUT] or output.get(Channel.TERMINAL, b"")
        return results.Outcome(execution_id, stdout, output[Channel.STDERR], tuple(self._notices), self._finished)
