"""ExecutionService: runs tools and streams what happens."""

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
    RunRequest,
    RunResponse,
)

from enclaved import log
from enclaved.core.executions import Execution, Executions
from enclaved.errors import InvalidRequest, NotServed
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context


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
        opened = await self._open(await anext(requests, ExecuteRequest()))
        log.bind(execution_id=opened.execution.id)
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(_feed(requests, opened.execution, opened.observe))
            await _follow(opened, context, lambda event: ExecuteResponse(event=event))
            feeding.cancel()

    async def attach(self, request: AttachRequest, context: Context) -> None:
        """Follows an execution from given offsets."""
        await _follow(self._find(request, ""), context, lambda event: AttachResponse(event=event))

    async def cancel_execution(self, request: CancelExecutionRequest, context: Context) -> CancelExecutionResponse:
        """Ends an execution and returns at once."""
        execution = self._executions.get(
            fields.execution_id(request.execution_id), fields.sandbox_id(request.sandbox_id, required=False)
        )
        execution.cancel("a caller")
        return CancelExecutionResponse()

    async def _open(self, first: ExecuteRequest) -> _Opened:
        match first.WhichOneof("message"):
            case "start":
                log.bind(sandbox_id=first.start.sandbox_id)
                call = convert.tool_call(first.start, "start", streamed=True)
                return _Opened(await self._executions.open(call), {}, observe=False)
            case "attach":
                return self._find(first.attach, "attach.")
            case _:
                raise InvalidRequest.of("message", "the first message must be `start` or `attach`")

    def _find(self, request: AttachRequest, field: str) -> _Opened:
        log.bind(sandbox_id=request.sandbox_id)
        execution = self._executions.get(
            fields.execution_id(request.execution_id, f"{field}execution_id"),
            fields.sandbox_id(request.sandbox_id, f"{field}sandbox_id", required=False),
        )
        return _Opened(execution, convert.offsets(request.offsets, f"{field}offsets"), request.observe)


class _Opened(NamedTuple):
    """An execution and how its client wants to follow it."""

    execution: Execution
    offsets: Mapping[int, int]
    observe: bool


async def _follow(opened: _Opened, context: Context, wrap: Callable[[ExecutionEvent], Any]) -> None:
    """Writes every event to the client; a slow one makes this wait, and so its program."""
    async with opened.execution.attach(opened.offsets, observe=opened.observe) as events:
        async for event in events:
            await context.write(wrap(convert.event(event)))


async def _feed(requests: AsyncIterator[ExecuteRequest], execution: Execution, observe: bool) -> None:
    """Hands what the client sends to the execution. While a program does not read its input, nothing more is read."""
    async for request in requests:
        match request.WhichOneof("message"):
            case "stdin":
                offset = request.stdin.offset if request.stdin.HasField("offset") else None
                if offset is not None:
                    fields.not_negative(offset, "stdin.offset")
                await execution.write_stdin(fields.chunk(request.stdin.data, "stdin.data"), offset)
            case "end_of_input":
                await execution.end_input()
            case "acknowledge" if observe:
                raise InvalidRequest.of("acknowledge", "one who observes releases nothing; attach without `observe`")
            case "acknowledge":
                execution.acknowledge(convert.offsets(request.acknowledge.offsets, "acknowledge.offsets"))
            case "cancel":
                execution.cancel("its client")
            case ("signal" | "resize") as name:
                raise NotServed(name)
            case ("start" | "attach") as name:
                raise InvalidRequest.of(name, "must be the first message only")
            case _:
                raise InvalidRequest.of("message", "is empty or of a kind that this version does not know")
