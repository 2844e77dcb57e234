"""One execution as one event loop follows it: a task that keeps a stream to the daemon, and another when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import grpc
import grpc.aio

from ms_enclave import _convert as convert
from ms_enclave._model import Channel, Event, Finished, Notice, NoticeKind, Output, Started
from ms_enclave._transports.calls import Calls, DaemonStatus, is_core_error
from ms_enclave._transports.channels import Stubs
from ms_enclave._transports.retry import Patience
from ms_enclave._transports.upward import Upward
from ms_enclave.errors import DeadlineExceeded, EnclaveError, InternalError, OffsetReleased, Unavailable
from ms_enclave.v1 import execution_service_pb2 as pb

ANSWER_S: Final = 30.0
"""How long a daemon may take until a stream brings its first message."""
STREAM_S: Final = 600.0
"""How long one stream may last. Executions outlive it: they are taken up again where it ended."""
SETTLED_S: Final = 5.0
"""A stream that lived so long was no mere attempt."""
WAITING_EVENTS: Final = 8
"""How many events are taken ahead of the reader. Then the stream waits, and so does the program."""

_Call = (
    grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.AttachResponse]
    | (grpc.aio.StreamStreamCall[pb.ExecuteRequest, pb.ExecuteResponse])
)


@dataclass
class Track:
    """What is followed, and how far its reader has come, over all streams and event loops."""

    execution_id: str
    sandbox_id: str
    spec: pb.ExecutionSpec | None = None
    """What to start; ``None`` for an execution that exists."""
    observe: bool = False
    """Whether to watch without releasing anything, and without input."""
    stats_interval: float | None = None
    offsets: dict[Channel, int] = field(default_factory=dict)
    """The next offset that the reader lacks, for each channel."""
    started: Started | None = None
    """Set when the daemon said that it exists."""
    told: bool = False
    """Whether the reader knows that it has started."""
    finished: Finished | None = None

    def attach_request(self, offsets: Mapping[Channel, int]) -> pb.AttachRequest:
        """Writes the request to follow it from these offsets."""
        request = pb.AttachRequest(
            execution_id=convert.text(self.execution_id, "execution_id"),
            sandbox_id=convert.text(self.sandbox_id, "sandbox_id"),
            offsets=convert.offsets(offsets),
            observe=self.observe,
        )
        if self.stats_interval is not None:
            request.stats_interval_s = self.stats_interval
        return request


class Session:
    """Follows one execution to its end, in the event loop in which it was made. Not to be shared between loops."""

    def __init__(self, calls: Calls, track: Track, upward: Upward) -> None:
        self.loop = asyncio.get_running_loop()
        self.upward = upward
        self._calls, self._track = calls, track
        self._received = dict(track.offsets)
        self._patience = Patience(track.execution_id, reached=calls.reached)
        self._patience.known = track.started is not None
        self._events: deque[Event] = deque()
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._last: Event | None = None
        self._ended = False
        self._progress = False
        self._answered = False
        self._failure: EnclaveError | None = None
        self.spent = False
        """Whether it failed and its reader knows. To try again takes another session."""
        self._task = asyncio.create_task(self._serve())
        self._task.add_done_callback(lambda _: self._arrived.set())

    async def next(self) -> Event | None:
        """Returns the next event; ``None`` after the last. Asking for it says that the one before is consumed.

        Raises what ended the session early, faults of its own included.
        """
        self._confirm()
        while not self._events:
            if self._task.done():
                failure = self._why()
                if failure is not None:
                    self.spent = True
                    raise failure
                return None
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        self._taken.set()
        if isinstance(event, Output):
            self._track.offsets[event.channel] = event.offset + len(event.data)
        self._last = event
        return event

    async def answered(self) -> None:
        """Waits until the daemon says that the execution exists. Raises what it says instead."""
        while self._track.started is None:
            if self._task.done():
                raise self._why() or InternalError(f"execution {self._track.execution_id} was not started")
            self._arrived.clear()
            await self._arrived.wait()

    async def writes(self, data: bytes) -> None:
        """Sends input; returns when it is on its way. Raises what ended the session, if that is sooner."""
        writing = asyncio.create_task(self.upward.write(data))
        try:
            await asyncio.wait({writing, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() and (failure := self._why()) is not None:
                raise failure
        finally:
            writing.cancel()

    def _why(self) -> BaseException | None:
        """What ended its task, if that was not the end of the execution: also what nobody expected."""
        if self._failure is not None or not self._task.done() or self._task.cancelled():
            return self._failure
        return self._task.exception()

    @property
    def over(self) -> bool:
        """Whether it has nothing more to bring."""
        return self._task.done() and not self._events

    async def close(self) -> None:
        """Lets go of the execution, which goes on by itself. Belongs into the loop of the session."""
        self._confirm()
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=1.0)

    def abandon(self) -> None:
        """Lets go of the execution, from another thread or loop."""
        if not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it was closed at this moment
                self.loop.call_soon_threadsafe(self._task.cancel)

    # -- its task ------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while not self._ended:
                await self._attempt()
        except EnclaveError as error:
            self._failure = error

    async def _attempt(self) -> None:
        """Follows over one stream, and waits before the next one if this one was lost."""
        self._progress = self._answered = False
        begun = self.loop.time()
        error: EnclaveError
        try:
            with self._calls.call(STREAM_S) as stubs:
                await self._one_stream(stubs)
            if not self._ended:
                raise InternalError(
                    f"the stream of execution {self._track.execution_id} ended before the execution did"
                )
        except DeadlineExceeded as late:
            if not self._answered:
                raise
            error, self._progress = late, True
        except OffsetReleased as released:
            self._skip(released)
            return
        except Unavailable as unavailable:
            error = unavailable
        else:
            return
        if self._progress or (self._answered and self.loop.time() - begun > SETTLED_S):
            self._patience.renew()
        if not isinstance(error, DeadlineExceeded):
            await self._calls.wait(self._patience, error)

    async def _one_stream(self, stubs: Stubs) -> None:
        call = self._open(stubs)
        daemon_status = DaemonStatus(call)
        call.add_done_callback(lambda _: self._taken.set())
        sending: asyncio.Task[None] | None = None
        if isinstance(call, grpc.aio.StreamStreamCall):
            sending = asyncio.create_task(self._send(call))
        try:
            message = await _first(call)
            while isinstance(message, pb.AttachResponse | pb.ExecuteResponse):
                self._take(convert.event(message.event))
                while len(self._events) >= WAITING_EVENTS and not call.done():
                    self._taken.clear()
                    await self._taken.wait()
                message = await call.read()
        except grpc.aio.AioRpcError as error:
            found = await daemon_status.instead_of(error)
            # Why it ended is lost, or what came before its end. Attaching again is safe, and will tell.
            if is_core_error(found) or found.code() is grpc.StatusCode.OK:
                raise Unavailable("the stream broke off while something was being sent") from None
            raise found from None
        finally:
            call.cancel()
            if sending is not None:
                sending.cancel()
                await asyncio.wait({sending}, timeout=1.0)

    def _open(self, stubs: Stubs) -> _Call:
        if self._track.observe:
            return stubs.executions.Attach(self._track.attach_request(self._received), timeout=STREAM_S)
        return stubs.executions.Execute(timeout=STREAM_S)

    async def _send(self, call: grpc.aio.StreamStreamCall[pb.ExecuteRequest, pb.ExecuteResponse]) -> None:
        if self._track.spec is not None and self._track.started is None:
            opening = pb.ExecuteRequest(start=self._track.spec)
        else:
            opening = pb.ExecuteRequest(attach=self._track.attach_request(self._received))
        # Why a stream ended is for its reader to find out.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(opening)
            async with contextlib.aclosing(self.upward.requests()) as requests:
                async for request in requests:
                    await call.write(request)

    def _take(self, event: Event | None) -> None:
        self._answered = True
        match event:
            case None:
                return
            case Started():
                self._patience.known = True
                self._track.started = self._track.started or event
                self._arrived.set()
                if self._track.told:
                    return
                self._track.told = True
            case Output():
                fresh = _unseen(event, self._received.get(event.channel, 0))
                if fresh is None:
                    return
                event = fresh
                self._received[event.channel] = event.offset + len(event.data)
                self.upward.received(len(event.data))
                self._progress = True
            case Finished():
                self._ended = True
                self._track.finished = event
            case _:
                self._progress = True
        self._events.append(event)
        self._arrived.set()

    def _skip(self, released: OffsetReleased) -> None:
        """Goes on where the daemon still has output, and says what is missing. Raises for what a caller asked for."""
        channel = next((one for one in Channel if one.value == released.metadata.get("channel")), None)
        first = released.metadata.get("first_offset", "")
        if self._track.started is None or channel is None or not convert.is_offset(first):
            raise released
        missed = int(first) - self._received.get(channel, 0)
        if missed <= 0:
            raise released
        text = f"{missed} bytes of {channel.value} were released while the connection was lost"
        self._events.append(Notice(NoticeKind.GAP, text, channel, self._received.get(channel, 0), missed))
        self._received[channel] = int(first)
        self._arrived.set()

    def _confirm(self) -> None:
        last, self._last = self._last, None
        if isinstance(last, Output):
            self.upward.consumed(last.channel, last.offset + len(last.data), len(last.data))


async def _first(call: _Call) -> object:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await call.read()
    except TimeoutError:
        raise DeadlineExceeded(f"the daemon did not answer within {ANSWER_S:g} seconds") from None


def _unseen(piece: Output, next_offset: int) -> Output | None:
    """Cuts off what was received before; ``None`` if that is all of it."""
    seen = next_offset - piece.offset
    if seen <= 0:
        return piece
    if seen >= len(piece.data):
        return None
    return replace(piece, offset=next_offset, data=piece.data[seen:])
