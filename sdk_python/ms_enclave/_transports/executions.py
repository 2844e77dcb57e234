"""Runs tools and follows what they do, across lost connections and restarted daemons.

An execution belongs to the daemon and has an id that we choose, so to ask for it twice is to ask for the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any, Final

from ms_enclave import _convert as convert
from ms_enclave import _results as results
from ms_enclave._model import Channel, Event, ExecutionInfo, Finished, Started
from ms_enclave._transports.base import POOL_WAIT_S, ToolCall
from ms_enclave._transports.calls import REQUEST_S, Calls
from ms_enclave._transports.follower import Follower
from ms_enclave._transports.gathered import Gathered
from ms_enclave._transports.paging import Pages
from ms_enclave._transports.retry import Patience
from ms_enclave._transports.session import STREAM_S, Track
from ms_enclave.errors import DeadlineExceeded, EnclaveError, InvalidRequest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb

ANSWER_S: Final = 30.0
"""How long a daemon may take beyond the execution's own time before we ask whether the execution is still there."""
POOL_RUN_S: Final = 24 * 3600.0
"""How long a call in a pool may run as far as we know, if it does not say so itself. The daemon's policy says less."""
CANCEL_S: Final = 5.0
"""How long a caller that was cancelled waits for its execution to be cancelled as well."""
OUTPUT_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""A whole result is kept in the caller's memory, so a program that writes more is killed (OUTPUT_LIMIT)."""
PAGE_SIZE: Final = 1000


class Executions:
    """Executions of the daemon behind ``calls``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    # -- to the end ----------------------------------------------------------------------------------------------

    async def run(self, call: ToolCall) -> results.Outcome:
        """Runs a tool to its end. If the caller's task is cancelled, cancels the execution first."""
        spec = _spec(call)
        if spec.detach or call.options.stdin is True or spec.HasField("stats_interval_s"):
            raise InvalidRequest(
                "options: a call that waits for its result takes neither detach, stdin=True nor stats_interval; "
                "use stream() or start_execution()"
            )
        if not spec.HasField("output_limit_bytes"):
            spec.output_limit_bytes = OUTPUT_LIMIT_BYTES
        if spec.stdin or spec.HasField("terminal"):
            options = replace(call.options, execution_id=spec.execution_id, output_limit_bytes=spec.output_limit_bytes)
            call = replace(call, options=options)
            return await self._gather(Gathered(pb.RunResponse()), spec.execution_id, self.stream(call))
        try:
            return await self._run(spec, (call.timeout_s or STREAM_S) + ANSWER_S)
        except asyncio.CancelledError:
            await self._cancel_quietly(spec.execution_id, spec.sandbox_id)
            raise

    async def stream(self, call: ToolCall) -> AsyncGenerator[Event, None]:
        """Runs a tool and yields its events.

        Cancels the execution if the caller leaves before its end, unless it is detached.
        """
        if call.stdin is None and call.options.stdin is True:
            raise InvalidRequest(
                "options.stdin: nobody could write to this program; give the input itself, or use start_execution()"
            )
        follower = self.follow(call)
        feeding = asyncio.create_task(_feed(follower, call))
        ended = False
        try:
            while (event := await follower.next()) is not None:
                ended = isinstance(event, Finished)
                yield event
        finally:
            feeding.cancel()
            await follower.close()
            if not ended and not call.options.detach:
                await self._cancel_quietly(follower.execution_id, call.sandbox_id)
        # Why a source failed matters more than that its program then saw an early end of its input.
        if feeding.done() and not feeding.cancelled() and (failure := feeding.exception()) is not None:
            raise failure

    async def run_in_pool(self, pool_id: str, call: ToolCall, wait_timeout_s: float | None) -> results.Outcome:
        """Runs a tool in a sandbox of a pool, which waits for a free one first. Cancels the execution as `run` does."""
        wait_s = POOL_WAIT_S if wait_timeout_s is None else wait_timeout_s
        spec = _spec(call)
        request = pool_pb.RunInPoolRequest(pool_id=convert.text(pool_id, "pool_id"), spec=spec, wait_timeout_s=wait_s)
        timeout_s = wait_s + (call.timeout_s or POOL_RUN_S) + ANSWER_S
        try:
            answer = await self._calls.unary(lambda stubs: stubs.pools.RunInPool, request, timeout_s=timeout_s)
        except asyncio.CancelledError:
            await self._cancel_quietly(spec.execution_id, spec.sandbox_id)
            raise
        return Gathered(answer.run).outcome(answer.run.execution_id or spec.execution_id)

    async def _run(self, spec: pb.ExecutionSpec, timeout_s: float) -> results.Outcome:
        patience = Patience(spec.execution_id, reached=self._calls.reached)
        try:
            answer = await self._calls.unary(
                lambda stubs: stubs.executions.Run, pb.RunRequest(spec=spec), timeout_s=timeout_s, retries=patience
            )
        except DeadlineExceeded:
            # It goes on without us: it may still be waiting for its context, or run longer than we could know.
            answer = pb.RunResponse(execution_id=spec.execution_id, running=True)
        gathered = Gathered(answer)
        if not answer.running:
            return gathered.outcome(spec.execution_id)
        track = Track(
            spec.execution_id,
            spec.sandbox_id,
            offsets=gathered.offsets(),
            started=Started(spec.execution_id, spec.timeout_s),
        )
        return await self._gather(gathered, spec.execution_id, _events(Follower(self._calls, track)))

    async def _gather(
        self, gathered: Gathered, execution_id: str, events: AsyncGenerator[Event, None]
    ) -> results.Outcome:
        async with contextlib.aclosing(events):
            async for event in events:
                gathered.add(event)
        return gathered.outcome(execution_id)

    # -- to be followed ------------------------------------------------------------------------------------------

    def follow(self, call: ToolCall) -> Follower:
        """Returns an execution that starts as soon as it is used. Raises `InvalidRequest`."""
        spec = _spec(call)
        track = Track(spec.execution_id, spec.sandbox_id, spec, stats_interval=call.options.stats_interval)
        return Follower(self._calls, track)

    async def start_detached(self, call: ToolCall) -> Follower:
        """Starts an execution that nobody need follow. Raises as `run`."""
        spec = _spec(call)
        if spec.stdin or spec.HasField("terminal"):
            follower = self.follow(replace(call, options=replace(call.options, execution_id=spec.execution_id)))
            await follower.start()
            return follower
        spec.ClearField("stats_interval_s")  # said when it is followed
        patience = Patience(spec.execution_id, reached=self._calls.reached)
        await self._calls.unary(lambda stubs: stubs.executions.Run, pb.RunRequest(spec=spec), retries=patience)
        return self.attach(spec.execution_id, spec.sandbox_id, {}, stats_interval=call.options.stats_interval)

    def attach(
        self,
        execution_id: str,
        sandbox_id: str,
        offsets: Mapping[Channel, int],
        *,
        observe: bool = False,
        stats_interval: float | None = None,
    ) -> Follower:
        """Returns an execution that exists, to be followed from ``offsets`` on."""
        track = Track(execution_id, sandbox_id, observe=observe, stats_interval=stats_interval, offsets=dict(offsets))
        track.attach_request(track.offsets)  # raises for what cannot be sent
        return Follower(self._calls, track)

    # -- by id ---------------------------------------------------------------------------------------------------

    async def cancel(self, execution_id: str, sandbox_id: str) -> None:
        """Kills an execution. One that has ended is left as it is. Raises `ExecutionNotFound`."""
        request = pb.CancelExecutionRequest(**_named(execution_id, sandbox_id))
        await self._calls.unary(lambda stubs: stubs.executions.CancelExecution, request)

    async def signal(self, execution_id: str, sandbox_id: str, number: int, *, leader_only: bool = False) -> None:
        """Sends a signal to an execution. Raises `ExecutionNotFound`, `InvalidRequest`."""
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 64:
            raise InvalidRequest(f"number: {number!r} is no signal; they are 1 to 64")
        signal = pb.Signal(signal=number, leader_only=leader_only)
        request = pb.SignalExecutionRequest(**_named(execution_id, sandbox_id), signal=signal)
        await self._calls.unary(lambda stubs: stubs.executions.SignalExecution, request)

    async def get(self, execution_id: str, sandbox_id: str = "") -> ExecutionInfo:
        """Describes an execution. Raises `ExecutionNotFound`."""
        request = pb.GetExecutionRequest(**_named(execution_id, sandbox_id))
        answer = await self._calls.unary(lambda stubs: stubs.executions.GetExecution, request)
        return convert.execution_info(answer.execution)

    async def list(self, sandbox_id: str, *, running: bool | None = None) -> list[ExecutionInfo]:
        """Lists the executions of a sandbox that run or ended not long ago, oldest first. Raises `SandboxNotFound`."""
        states = {True: pb.EXECUTION_STATE_RUNNING, False: pb.EXECUTION_STATE_ENDED}
        request = pb.ListExecutionsRequest(
            sandbox_id=convert.text(sandbox_id, "sandbox_id"),
            state=pb.EXECUTION_STATE_UNSPECIFIED if running is None else states[running],
            page_size=PAGE_SIZE,
        )
        found: list[ExecutionInfo] = []
        pages = Pages("executions")
        while True:
            page = await self._calls.unary(lambda stubs: stubs.executions.ListExecutions, request)
            found.extend(convert.execution_info(execution) for execution in page.executions)
            if not page.next_page_token:
                return found
            request.page_token = pages.following(page.next_page_token)

    async def wait(self, execution_id: str, sandbox_id: str, wait_s: float) -> ExecutionInfo:
        """Waits for the end of an execution, and describes it when that is there or the time is over.

        Raises `ExecutionNotFound`, `ExecutionUnreachable`.
        """
        patience = Patience(execution_id, reached=self._calls.reached)
        patience.known = self._calls.reached
        request = pb.WaitExecutionRequest(**_named(execution_id, sandbox_id), wait_s=wait_s)
        answer = await self._calls.unary(
            lambda stubs: stubs.executions.WaitExecution, request, timeout_s=wait_s + REQUEST_S, retries=patience
        )
        return convert.execution_info(answer.execution)

    async def _cancel_quietly(self, execution_id: str, sandbox_id: str) -> None:
        """Cancels an execution as well as a few seconds allow. If it fails, the daemon's grace period ends it."""
        request = pb.CancelExecutionRequest(execution_id=execution_id, sandbox_id=sandbox_id)
        with contextlib.suppress(EnclaveError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                with self._calls.call(CANCEL_S) as stubs:
                    await stubs.executions.CancelExecution(request, timeout=CANCEL_S)


def _spec(call: ToolCall) -> pb.ExecutionSpec:
    parameters = convert.to_json(call.parameters, "parameters")
    spec = convert.tool_call(call.sandbox_id, call.tool, parameters, call.options)
    spec.stdin = spec.stdin or call.stdin is not None
    if not spec.execution_id:
        spec.execution_id = secrets.token_hex(16)
    return spec


def _named(execution_id: str, sandbox_id: str) -> dict[str, Any]:
    return {
        "execution_id": convert.text(execution_id, "execution_id"),
        "sandbox_id": convert.text(sandbox_id, "sandbox_id"),
    }


async def _feed(follower: Follower, call: ToolCall) -> None:
    """Sends a program its input, no faster than it takes it. Raises what the source raises, after ending the input."""
    given = call.options.stdin
    failure: OSError | None = None
    # What goes wrong on the way is for whoever reads the events.
    with contextlib.suppress(EnclaveError):
        try:
            if call.stdin is not None:
                async for data in call.stdin:
                    await follower.write(data)
            elif not isinstance(given, bool):
                await follower.write(given.encode() if isinstance(given, str) else given)
        except EnclaveError:
            raise
        except OSError as error:
            failure = error
        if call.stdin is not None or call.options.stdin or call.options.terminal:
            follower.end_input()
    if failure is not None:
        raise failure


async def _events(follower: Follower) -> AsyncGenerator[Event, None]:
    try:
        while (event := await follower.next()) is not None:
            yield event
    finally:
        await follower.close()
