"""ExecutionService: runs tools, streams what happens, and lets others look on and step in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from ms_enclave.v1.execution_service_pb2 import (
    AttachRequest,
    AttachResponse,
    CancelExecutionRequest,
    CancelExecutionResponse,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionEvent,
    GetExecutionRequest,
    GetExecutionResponse,
    ListExecutionsRequest,
    ListExecutionsResponse,
    RunRequest,
    RunResponse,
    SignalExecutionRequest,
    SignalExecutionResponse,
    WaitExecutionRequest,
    WaitExecutionResponse,
)

from enclaved import log
from enclaved.core.executions import Execution, Executions
from enclaved.errors import InvalidRequest
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._auth import demand
from enclaved.services._interceptors import Context
from enclaved.services._limits import first_message
from enclaved.services._pages import fitting
from enclaved.services._upward import Upward


class ExecutionService:
    """Serves ``ms_enclave.v1.ExecutionService``. A client that leaves detaches; it does not kill."""

    def __init__(self, executions: Executions) -> None:
        self._executions = executions

    async def run(self, request: RunRequest, context: Context) -> RunResponse:
        """Runs a tool and answers with the whole result."""
        call = convert.tool_call(request.spec, "spec", streamed=False)
        return convert.run_response(await self._executions.run(call))

    async def execute(self, requests: AsyncIterator[ExecuteRequest], context: Context) -> None:
        """Runs a tool with input going up while output comes down."""
        following = await self._open(await first_message(requests, context))
        log.bind(execution_id=following.execution.id)
        upward = Upward(following.execution, following.observe)
        async with asyncio.TaskGroup() as tasks:
            upwards = [tasks.create_task(upward.take(requests)), tasks.create_task(upward.write_input())]
            await _follow(following, context, lambda event: ExecuteResponse(event=event), upward)
            for task in upwards:
                task.cancel()

    async def attach(self, request: AttachRequest, context: Context) -> None:
        """Follows an execution from given offsets. Who does more than observe needs what Execute needs."""
        if not request.observe:
            demand("ExecutionService.Execute")
        await _follow(self._to_attach(request, ""), context, lambda event: AttachResponse(event=event))

    async def cancel_execution(self, request: CancelExecutionRequest, context: Context) -> CancelExecutionResponse:
        """Ends an execution and returns at once."""
        self._find(request).cancel("a caller")
        return CancelExecutionResponse()

    async def signal_execution(self, request: SignalExecutionRequest, context: Context) -> SignalExecutionResponse:
        """Sends a signal to an execution and returns at once."""
        number = convert.signal_number(request.signal, "signal")
        self._find(request).signal(number, leader_only=request.signal.leader_only)
        return SignalExecutionResponse()

    async def get_execution(self, request: GetExecutionRequest, context: Context) -> GetExecutionResponse:
        """Shows an execution."""
        return GetExecutionResponse(execution=convert.execution(self._find(request).info()))

    async def list_executions(self, request: ListExecutionsRequest, context: Context) -> ListExecutionsResponse:
        """Lists a page of executions."""
        sandbox_id = fields.sandbox_id(request.sandbox_id, required=False)
        running, token = convert.is_running(request.state), request.page_token
        page, shown = fitting(
            request.page_size,
            lambda size: self._executions.list(
                sandbox_id=sandbox_id, running=running, page_size=size, page_token=token
            ),
            lambda page: (convert.execution(each) for each in page.executions),
        )
        return ListExecutionsResponse(executions=shown, next_page_token=page.next_page_token)

    async def wait_execution(self, request: WaitExecutionRequest, context: Context) -> WaitExecutionResponse:
        """Waits for the end of an execution."""
        found = await self._executions.wait(*_names(request), convert.wait_s(request))
        return WaitExecutionResponse(execution=convert.execution(found))

    async def _open(self, first: ExecuteRequest) -> _Following:
        match first.WhichOneof("message"):
            case "start":
                log.bind(sandbox_id=first.start.sandbox_id)
                interval_s = convert.stats_interval_s(first.start, "start.")
                call = convert.tool_call(first.start, "start", streamed=True)
                return _Following(await self._executions.open(call), {}, observe=False, stats_interval_s=interval_s)
            case "attach":
                return self._to_attach(first.attach, "attach.")
            case _:
                raise InvalidRequest.of("message", "the first message must be `start` or `attach`")

    def _to_attach(self, request: AttachRequest, field: str) -> _Following:
        log.bind(sandbox_id=request.sandbox_id)
        return _Following(
            self._find(request, field),
            convert.offsets(request.offsets, f"{field}offsets"),
            request.observe,
            convert.stats_interval_s(request, field),
        )

    def _find(self, request: _Named, field: str = "") -> Execution:
        return self._executions.get(*_names(request, field))


_Named = AttachRequest | CancelExecutionRequest | SignalExecutionRequest | GetExecutionRequest | WaitExecutionRequest


def _names(request: _Named, field: str = "") -> tuple[str, str]:
    """Reads the id of an execution, and that of its sandbox if the caller gave it."""
    return (
        fields.execution_id(request.execution_id, f"{field}execution_id"),
        fields.sandbox_id(request.sandbox_id, f"{field}sandbox_id", required=False),
    )


class _Following(NamedTuple):
    """An execution and how its client wants to follow it."""

    execution: Execution
    offsets: Mapping[int, int]
    observe: bool
    stats_interval_s: float | None


async def _follow(
    following: _Following,
    context: Context,
    wrap: Callable[[ExecutionEvent], Any],
    follower: object | None = None,
) -> None:
    """Writes every event to the client; a slow one makes this wait, and so its program."""
    execution, offsets, observe, interval_s = following
    async with execution.attach(offsets, observe=observe, stats_interval_s=interval_s, follower=follower) as events:
        async for event in events:
            await context.write(wrap(convert.event(event)))
