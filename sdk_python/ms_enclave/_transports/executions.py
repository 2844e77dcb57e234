"""Runs tools and follows what they do, across lost connections and restarted daemons.

An execution belongs to the daemon and has an id that we choose, so to ask for it twice is to ask for the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import grpc.aio

from ms_enclave import _convert as convert
from ms_enclave import _results as results
from ms_enclave._model import Channel, Event, Finished, Notice, Output, Started
from ms_enclave._transports.base import POOL_WAIT_S, ToolCall
from ms_enclave._transports.calls import Calls, DaemonStatus, is_core_error
from ms_enclave._transports.stdin import Input
from ms_enclave.errors import DeadlineExceeded, EnclaveError, InternalError, Unavailable
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb

ANSWER_S: Final = 30.0
"""How long a daemon may take beyond the execution's own time before we ask whether the execution is still there."""
STREAM_S: Final = 600.0
"""How long one stream may last. Executions outlive it: they are taken up again where it ended."""
POOL_RUN_S: Final = 24 * 3600.0
"""How long a call in a pool may run as far as we know, if it does not say so itself. The daemon's policy says less."""
CANCEL_S: Final = 5.0
"""How long a caller that was cancelled waits for its execution to be cancelled as well."""
OUTPUT_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""A whole result is kept in the caller's memory, so a program that writes more is killed (OUTPUT_LIMIT)."""

_NUMBERS = {channel: number for number, channel in convert.CHANNELS.items()}
_Call = (
    grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.AttachResponse]
    | (grpc.aio.StreamStreamCall[pb.ExecuteRequest, pb.ExecuteResponse])
)


class Executions:
    """Executions of the daemon behind ``calls``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def run(self, call: ToolCall) -> results.Outcome:
        """Runs a tool to its end. If the caller's task is cancelled, cancels the execution first."""
        spec = _spec(call)
        spec.output_limit_bytes = OUTPUT_LIMIT_BYTES
        try:
            return await self._run(spec, (call.timeout_s or STREAM_S) + ANSWER_S)
        except asyncio.CancelledError:
            await self._cancel(spec)
            raise

    async def stream(self, call: ToolCall) -> AsyncGenerator[Event, None]:
        """Runs a tool and yields its events. Cancels the execution if the caller leaves before its end."""
        spec = _spec(call)
        stdin = None if call.stdin is None else Input(call.stdin)
        spec.stdin = stdin is not None
        pumping = None if stdin is None else asyncio.create_task(stdin.pump())
        ended = False
        try:
            async with contextlib.aclosing(self._follow(spec, {}, stdin, known=False)) as events:
                async for event in events:
                    ended = isinstance(event, Finished)
                    yield event
        finally:
            if pumping is not None:
                pumping.cancel()
            if not ended:
                await self._cancel(spec)
        if stdin is not None and stdin.failure is not None:
            raise stdin.failure

    async def run_in_pool(self, pool_id: str, call: ToolCall, wait_timeout_s: float | None) -> results.Outcome:
        """Runs a tool in a sandbox of a pool, which waits for a free one first. Cancels the execution as `run` does."""
        wait_s = POOL_WAIT_S if wait_timeout_s is None else wait_timeout_s
        spec = _spec(call)
        request = pool_pb.RunInPoolRequest(pool_id=convert.text(pool_id, "pool_id"), spec=spec, wait_timeout_s=wait_s)
        timeout_s = wait_s + (call.timeout_s or POOL_RUN_S) + ANSWER_S
        try:
            answer = await self._calls.unary(lambda stubs: stubs.pools.RunInPool, request, timeout_s=timeout_s)
        except asyncio.CancelledError:
            await self._cancel(spec)
            raise
        return _Gathered(answer.run).outcome(answer.run.execution_id or spec.execution_id)

    async def _run(self, spec: pb.ExecutionSpec, timeout_s: float) -> results.Outcome:
        try:
            answer = await self._calls.unary(
                lambda stubs: stubs.executions.Run, pb.RunRequest(spec=spec), timeout_s=timeout_s
            )
        except DeadlineExceeded:
            # It goes on without us: it may still be waiting for its context, or run longer than we could know.
            answer = pb.RunResponse(execution_id=spec.execution_id, running=True)
        gathered = _Gathered(answer)
        if answer.running:
            async with contextlib.aclosing(self._follow(spec, gathered.offsets(), known=True)) as events:
                async for event in events:
                    gathered.add(event)
        return gathered.outcome(spec.execution_id)

    async def _follow(
        self, spec: pb.ExecutionSpec, offsets: dict[Channel, int], stdin: Input | None = None, *, known: bool
    ) -> AsyncGenerator[Event, None]:
        """Yields an execution's events from ``offsets`` to its end, over as many streams as that takes.

        ``known``: the daemon has the execution; otherwise the first stream starts it.
        """
        retries = self._calls.retries()
        told_start = False
        while True:
            answered = progress = False
            error: EnclaveError
            try:
                async with contextlib.aclosing(self._one_stream(spec, offsets, stdin, known=known)) as events:
                    async for event in events:
                        known = answered = True
                        if isinstance(event, Started) and told_start:
                            continue
                        told_start = told_start or isinstance(event, Started)
                        if isinstance(event, Output):
                            progress = True
                            offsets[event.channel] = event.offset + len(event.data)
                        yield event
                        if isinstance(event, Finished):
                            return
                raise InternalError(f"the stream of execution {spec.execution_id} ended before the execution did")
            except DeadlineExceeded as late:
                if not answered:
                    raise
                error, progress = late, True
            except Unavailable as unavailable:
                error = unavailable
            if progress:
                retries = self._calls.retries()
            else:
                await self._calls.wait(retries, error)

    async def _one_stream(
        self, spec: pb.ExecutionSpec, offsets: dict[Channel, int], stdin: Input | None, *, known: bool
    ) -> AsyncGenerator[Event, None]:
        with self._calls.call(STREAM_S) as stubs:
            call: _Call
            if known and stdin is None:
                call = stubs.executions.Attach(_attach(spec, offsets), timeout=STREAM_S)
            else:
                opening = pb.ExecuteRequest(start=spec)
                if known:
                    opening = pb.ExecuteRequest(attach=_attach(spec, offsets))
                requests = _only(opening) if stdin is None else stdin.requests(opening)
                call = stubs.executions.Execute(requests, timeout=STREAM_S)
            daemon_status = DaemonStatus(call)
            try:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        message = await call.read()
                except TimeoutError:
                    raise DeadlineExceeded(f"the daemon did not answer within {ANSWER_S:g} seconds") from None
                while isinstance(message, pb.AttachResponse | pb.ExecuteResponse):
                    event = convert.event(message.event)
                    if isinstance(event, Output):
                        event = _unseen(event, offsets.get(event.channel, 0))
                    if event is not None:
                        yield event
                    message = await call.read()
            except grpc.aio.AioRpcError as error:
                found = await daemon_status.instead_of(error)
                if is_core_error(found):  # why it ended is lost; attaching again is safe, and will tell
                    raise Unavailable("the stream broke off while input was being sent") from None
                raise found from None
            finally:
                call.cancel()

    async def _cancel(self, spec: pb.ExecutionSpec) -> None:
        """Cancels an execution as well as a few seconds allow. If it fails, the daemon's grace period ends it."""
        request = pb.CancelExecutionRequest(execution_id=spec.execution_id, sandbox_id=spec.sandbox_id)
        with contextlib.suppress(EnclaveError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                with self._calls.call(CANCEL_S) as stubs:
                    await stubs.executions.CancelExecution(request, timeout=CANCEL_S)


class _Gathered:
    """A result as it comes together."""

    def __init__(self, answer: pb.RunResponse) -> None:
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


def _spec(call: ToolCall) -> pb.ExecutionSpec:
    return pb.ExecutionSpec(
        sandbox_id=convert.text(call.sandbox_id, "sandbox_id"),
        tool=convert.text(call.tool, "tool_name"),
        parameters_json=convert.to_json(call.parameters, "parameters"),
        execution_id=uuid.uuid4().hex,
    )


async def _only(request: pb.ExecuteRequest) -> AsyncIterator[pb.ExecuteRequest]:
    yield request


def _attach(spec: pb.ExecutionSpec, offsets: dict[Channel, int]) -> pb.AttachRequest:
    wanted = [pb.ChannelOffset(channel=_NUMBERS[channel], offset=offset) for channel, offset in offsets.items()]
    return pb.AttachRequest(execution_id=spec.execution_id, sandbox_id=spec.sandbox_id, offsets=wanted)


def _unseen(piece: Output, next_offset: int) -> Output | None:
    """Cuts off what was received before; ``None`` if that is all of it."""
    seen = next_offset - piece.offset
    if seen <= 0:
        return piece
    if seen >= len(piece.data):
        return None
    return Output(piece.channel, next_offset, piece.data[seen:], piece.time_s)
