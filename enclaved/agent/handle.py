"""One execution as the daemon knows it of the guest: its output readers, its input, its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from enclaved.agent.guest.frames import FrameError
from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES, STDERR, STDIN_WINDOW_BYTES, STDOUT
from enclaved.agent.jobs import WireJob
from enclaved.errors import (
    EnclaveError,
    ExecutionNotFound,
    GuestUnavailable,
    InvalidRequest,
    LimitReached,
    OffsetReleased,
)
from enclaved.model import CHANNEL_NAMES, Output

_TIME_MAX_S = 1e9
_OFFSET_MAX = 2**62
_TEXT_MAX_BYTES = 1000

END_PATIENCE_S = 30.0
CREDIT_BYTES = 2 * MAX_PAYLOAD_BYTES
"""What a guest may have sent to a reader that has not taken it, but for one more chunk (see `cost_bytes`)."""


class Sender(Protocol):
    """The connection that a handle speaks through."""

    sandbox_id: str
    handles: dict[str, Handle]

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends a frame if the guest is there."""
        ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the guest should run a job."""

    timeout_s: float
    output_limit_bytes: int | None = None
    stdin: bool = False
    merge_stderr: bool = False


class OutputReader:
    """One follower of an execution's output. The guest sends no more than the credit that this grants."""

    def __init__(self, handle: Handle, number: int, offsets: Mapping[int, int] | None) -> None:
        self.number = number
        self.handle = handle
        self.subscribed: asyncio.Future[Mapping[int, int]] = asyncio.get_running_loop().create_future()
        self.start_offsets: Mapping[int, int] = dict(offsets or {})
        """Where it begins; what the guest says of it, once it is subscribed."""
        self.offsets: dict[int, int] = dict(offsets or {})
        self._chunks: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_bytes = 0
        self._consumed_bytes = 0
        self.ended = False
        self._error: EnclaveError | None = None

    async def next(self, until_full: bool = False) -> Output | None:
        """Waits for the next chunk; ``None`` when the execution has ended and everything was delivered.

        With ``until_full`` it is ``None`` too when the program waits because its journal is full, and all that there
        is was delivered.

        Raises `SandboxLost` or `ExecutionNotFound` if there will be no more.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended or (until_full and self._is_at_stop()):
                return None
            await self._wait()
        chunk = self._chunks.popleft()
        self._waiting_bytes -= cost_bytes(chunk.data)
        self._consumed_bytes += cost_bytes(chunk.data)
        if self._consumed_bytes >= CREDIT_BYTES // 2:
            self.handle.send("credit", reader=self.number, bytes=self._consumed_bytes)
            self._consumed_bytes = 0
        return chunk

    def _is_at_stop(self) -> bool:
        stop = self.handle.full_at
        return stop is not None and all(self.offsets.get(channel, 0) >= offset for channel, offset in stop.items())

    async def _wait(self) -> None:
        """Waits for news. Once the execution has ended the guest has little time for the rest of the output."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(END_PATIENCE_S if self.handle.finished.done() else None):
                await self._waiter
        except TimeoutError:
            self._error = GuestUnavailable("the guest does not send the rest of the output")
        finally:
            self._waiter = None

    async def wait_subscribed(self) -> None:
        """Waits until the guest knows this reader. Raises what `Handle.subscribe` promises, or `GuestUnavailable`."""
        try:
            async with asyncio.timeout(END_PATIENCE_S):
                await self.subscribed
        except TimeoutError as error:
            raise GuestUnavailable("the guest does not answer; try to attach again") from error

    def subscription(self) -> dict[str, Any]:
        """What the guest must know to send from where this reader stands."""
        offsets = {str(channel): offset for channel, offset in self.offsets.items()}
        self._consumed_bytes = 0
        return {"reader": self.number, "offsets": offsets, "credit_bytes": CREDIT_BYTES - self._waiting_bytes}

    def close(self) -> None:
        """Stops following."""
        if self.handle.readers.pop(self.number, None) is not None and not self.ended:
            self.handle.send("unsubscribe", reader=self.number)

    def push(self, chunk: Output) -> None:
        """Takes a chunk from the guest. Raises FrameError if it was sent before, or without credit."""
        expected = self.offsets.get(chunk.channel, 0)
        if chunk.offset < expected or not chunk.data:
            raise FrameError(f"{len(chunk.data)} bytes of output at {chunk.offset}, wanted {expected}")
        if self._waiting_bytes >= CREDIT_BYTES:
            raise FrameError("output without credit")
        self.offsets[chunk.channel] = chunk.offset + len(chunk.data)
        self._waiting_bytes += cost_bytes(chunk.data)
        self._chunks.append(chunk)
        self.wake()

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """The guest follows from these offsets."""
        self.offsets = dict(offsets)
        if not self.subscribed.done():
            self.start_offsets = dict(offsets)
            self.subscribed.set_result(self.start_offsets)

    def end(self) -> None:
        """Everything has been sent."""
        self.ended = True
        self.wake()

    def fail(self, error: EnclaveError) -> None:
        """There will be no more."""
        self._error = error
        if not self.subscribed.done():
            self.subscribed.set_exception(error)
            self.subscribed.exception()  # whoever waits has it; nobody else needs the warning
        self.wake()

    def wake(self) -> None:
        """Lets whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Handle:
    """One execution as the daemon knows it of the guest."""

    def __init__(self, link: Sender, execution_id: str, job: WireJob, options: RunOptions) -> None:
        self.link, self.execution_id, self.options = link, execution_id, options
        self.job: WireJob | None = job
        self.readers: dict[int, OutputReader] = {}
        self.finished: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self.full_at: Mapping[int, int] | None = None
        """Where its output stops, since the program waits for acknowledgements; ``None`` while it goes on."""
        self._failure: EnclaveError | None = None
        self._next_reader = 0
        self._acknowledged: dict[int, int] = {}
        self._stdin = bytearray()
        self._stdin_base = 0  # offset of the first byte that the guest has not taken
        self._stdin_ended = False
        self._stdin_moved = asyncio.Event()
        self._cancelled = False

    def subscribe(self, offsets: Mapping[int, int] | None = None) -> OutputReader:
        """Adds a reader. Wait until it is subscribed to know where it starts, or that it cannot.

        Waiting raises `OffsetReleased`, `ExecutionNotFound`, `SandboxLost`.
        """
        reader = self._make_reader(offsets)
        if self._failure is not None:
            reader.fail(self._failure)
        else:
            self.readers[reader.number] = reader
            self.send("subscribe", **reader.subscription())
        return reader

    def _make_reader(self, offsets: Mapping[int, int] | None) -> OutputReader:
        self._next_reader += 1
        return OutputReader(self, self._next_reader, offsets)

    def start(self) -> OutputReader:
        """Sends the job, with a first reader from the first byte on."""
        reader = self._make_reader(None)
        self.readers[reader.number] = reader
        reader.start_at({STDOUT: 0, STDERR: 0})
        self._send_job(reader)
        return reader

    def _send_job(self, reader: OutputReader | None) -> None:
        if self.job is None:
            return
        document = self.job.document
        subscription = {"subscribe": reader.subscription()} if reader is not None else {}
        self.send(
            "run",
            document[:MAX_PAYLOAD_BYTES],
            context=self.job.context,
            timeout_s=self.options.timeout_s,
            output_limit_bytes=self.options.output_limit_bytes,
            stdin=self.options.stdin,
            merge_stderr=self.options.merge_stderr,
            job_bytes=len(document),
            **subscription,
        )
        for start in range(MAX_PAYLOAD_BYTES, len(document), MAX_PAYLOAD_BYTES):
            self.send("job", document[start : start + MAX_PAYLOAD_BYTES])

    def resume(self, known: bool) -> None:
        """Takes up the conversation after a reconnect."""
        if not known and (self.finished.done() or self.job is None):
            self.fail(ExecutionNotFound(self.execution_id))
            return
        readers = list(self.readers.values())
        if not known:
            self._send_job(None)
        for reader in readers:
            self.send("subscribe", **reader.subscription())
        if self._acknowledged:
            self._send_acknowledgement(self._acknowledged)
        if self._stdin or self._stdin_ended:
            self._send_stdin(self._stdin_base, bytes(self._stdin))
            if self._stdin_ended:
                self.send("end_of_input")
        if self._cancelled:
            self.send("cancel")

    def acknowledge(self, offsets: Mapping[int, int]) -> None:
        """Lets the guest release output before these offsets."""
        news = {channel: offset for channel, offset in offsets.items() if offset > self._acknowledged.get(channel, 0)}
        if news:
            self._acknowledged.update(news)
            self.full_at = None
            self._send_acknowledgement(news)

    def _send_acknowledgement(self, offsets: Mapping[int, int]) -> None:
        self.send("acknowledge", offsets={str(channel): offset for channel, offset in offsets.items()})

    async def write_stdin(self, data: bytes, offset: int | None) -> None:
        """Sends input; waits while the program does not read. Bytes that were sent before are skipped."""
        if offset is not None and offset > self._stdin_end:
            text = f"{offset} leaves a gap; the next byte wanted is {self._stdin_end}"
            raise InvalidRequest.of("stdin.offset", text)
        sent = 0
        while True:
            if offset is not None:  # a client that came back may send what another call of it is still sending
                sent = max(sent, self._stdin_end - offset)
            if sent >= len(data) or self.finished.done():  # after the end nobody will read it
                return
            if self._stdin_ended:
                raise InvalidRequest.of("stdin", "the end of the input has been sent already")
            if len(self._stdin) < STDIN_WINDOW_BYTES:
                piece = data[sent : sent + MAX_PAYLOAD_BYTES]
                sent += len(piece)
                self._stdin += piece
                self._send_stdin(self._stdin_end - len(piece), piece)
            else:
                self._stdin_moved.clear()
                await self._stdin_moved.wait()

    @property
    def _stdin_end(self) -> int:
        """The offset of the next byte of input."""
        return self._stdin_base + len(self._stdin)

    def _send_stdin(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), MAX_PAYLOAD_BYTES):
            self.send("stdin", data[start : start + MAX_PAYLOAD_BYTES], offset=offset + start)

    def end_input(self) -> None:
        """Says that no more input comes."""
        if not self._stdin_ended:
            self._stdin_ended = True
            self.send("end_of_input")

    def cancel(self) -> None:
        """Asks the guest to kill the execution."""
        self._cancelled = True
        self.send("cancel")

    def release(self) -> None:
        """Forgets an execution that has ended; the guest forgets it by itself, by age and by number."""
        error = ExecutionNotFound(self.execution_id)
        self._failure = self._failure or error
        for reader in list(self.readers.values()):
            reader.close()
            reader.fail(error)
        self.link.handles.pop(self.execution_id, None)

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Sends a frame about this execution; nothing while the guest is away, since ``resume`` says it again."""
        self.link.send({"type": kind, "execution": self.execution_id, **fields}, payload)

    def on_frame(self, kind: str, header: Mapping[str, Any], payload: bytes) -> None:
        """Takes in a frame of the guest about this execution."""
        self.job = None  # the guest has all of it
        if kind == "finished":
            self._stdin_moved.set()
            if not self.finished.done():
                self.finished.set_result(header)
            for reader in self.readers.values():
                reader.wake()
        elif kind == "refused":
            self.fail(self._refusal(string(header, "code"), string(header, "message")))
        elif kind == "full":
            self.full_at = _offsets(header)
            for reader in self.readers.values():
                reader.wake()
        elif kind == "stdin_taken":
            taken = integer(header, "offset")
            if not self._stdin_base <= taken <= self._stdin_end:
                raise FrameError(f"took input up to {taken}")
            del self._stdin[: taken - self._stdin_base]
            self._stdin_base = taken
            self._stdin_moved.set()
        else:
            follower = self.readers.get(integer(header, "reader"))
            if follower is not None:
                self._on_reader_frame(follower, kind, header, payload)

    def _on_reader_frame(self, reader: OutputReader, kind: str, header: Mapping[str, Any], payload: bytes) -> None:
        if kind == "output":
            channel, offset = integer(header, "channel"), integer(header, "offset")
            time_s = header.get("time_s")
            if channel not in (STDOUT, STDERR) or not isinstance(time_s, int | float) or not 0 <= time_s < _TIME_MAX_S:
                raise FrameError("output of an unknown channel or time")
            reader.push(Output(channel, offset, payload, float(time_s)))
        elif kind == "subscribed":
            reader.start_at(_offsets(header))
        elif kind == "end":
            self.readers.pop(reader.number, None)
            reader.end()
        elif kind == "released":
            self.readers.pop(reader.number, None)
            name = CHANNEL_NAMES.get(integer(header, "channel"), "unknown")
            reader.fail(OffsetReleased(name, integer(header, "offset"), integer(header, "first_offset")))
        elif kind == "unknown":
            self.readers.pop(reader.number, None)
            reader.fail(ExecutionNotFound(self.execution_id))
        else:
            raise FrameError(f"unknown type {kind!r}")

    def _refusal(self, code: str, message: str) -> EnclaveError:
        if code == "full":
            return LimitReached(f"sandbox/{self.link.sandbox_id}", "executions", message)
        return LimitReached(f"sandbox/{self.link.sandbox_id}", "processes", message)

    def fail(self, error: EnclaveError) -> None:
        """The execution will not go on, whoever asks."""
        self._failure = error
        self._stdin_moved.set()
        if not self.finished.done():
            self.finished.set_exception(error)
            self.finished.exception()
        for reader in list(self.readers.values()):
            reader.fail(error)
        self.readers.clear()
        self.link.handles.pop(self.execution_id, None)


def integer(header: Mapping[str, Any], name: str) -> int:
    """Takes a whole number that is not negative out of a header. Raises FrameError if it is anything else."""
    value = header.get(name)
    if type(value) is not int or not 0 <= value < _OFFSET_MAX:
        raise FrameError(f"{name} is no number that it could be")
    return value


def string(header: Mapping[str, Any], name: str) -> str:
    """Takes a text out of a header, as far as it is one; what is missing is empty. Raises FrameError otherwise."""
    value = header.get(name, "")
    if not isinstance(value, str):
        raise FrameError(f"{name} is no text")
    return value.encode("utf-8", "replace")[:_TEXT_MAX_BYTES].decode("utf-8", "ignore")


def _offsets(header: Mapping[str, Any]) -> dict[int, int]:
    offsets = header.get("offsets")
    if not isinstance(offsets, dict):
        raise FrameError("no offsets")
    return {channel: integer(offsets, str(channel)) for channel in (STDOUT, STDERR)}
