"""The one wrapper round every RPC: who calls, log fields, metrics, the gate at shutdown, and errors to statuses.

It wraps handlers of all four kinds in coroutine functions, because gRPC iterates generator handlers without closing
them, and sends the text of whatever they raise to the caller. Nothing but what `enclaved.status` makes gets out here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc import aio

from enclaved import errors, log, status
from enclaved.metrics import Metrics
from enclaved.services._auth import Doors, show
from enclaved.services._limits import (
    DEFAULT_LIMITS,
    OVERSIZED,
    EdgeLimits,
    InTime,
    Shares,
    first_message,
    has_too_much_metadata,
    lasts,
)

_log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_TRAILER = "grpc-status-details-bin"

# As text: gRPC's own classes are generic for type checkers only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class Calls:
    """The calls that run now. Once `close` was called, new ones are refused with `ShuttingDown`."""

    def __init__(self, limits: EdgeLimits = DEFAULT_LIMITS) -> None:
        self.limits, self.shares = limits, Shares(limits)
        self._active = 0
        self._open = True
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """How many calls run now."""
        return self._active

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts a call for as long as the block runs. Raises `ShuttingDown`."""
        if not self._open:
            raise errors.ShuttingDown
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def close(self) -> None:
        """Refuses new calls from now on."""
        self._open = False

    async def wait_idle(self) -> None:
        """Waits until no call runs."""
        await self._idle.wait()


class Wrapper(aio.ServerInterceptor):
    """Wraps the handler of every RPC that the server has."""

    def __init__(self, metrics: Metrics, calls: Calls, doors: Doors) -> None:
        self._metrics = metrics
        self._calls = calls
        self._doors = doors
        self._wrapped: dict[str, Handler] = {}
        self._unserved: Handler = grpc.stream_stream_rpc_method_handler(self._refuse_unserved)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Finds the handler of a call and wraps it; a method that nobody serves is unknown to who may call at all."""
        path = handler_call_details.method
        if has_too_much_metadata(handler_call_details):
            return OVERSIZED
        show(handler_call_details)
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unserved
            wrapped = self._wrapped[path] = self._wrap(path, handler)
        return wrapped

    def _wrap(self, path: str, handler: Handler) -> Handler:
        rpc = _Rpc.of(path, handler)

        async def wrapped(request: Any, context: Context) -> Any:
            return await self._run(rpc, request, context)

        # A single request is awaited and decoded inside `_run`: gRPC itself would wait for it without end, and a
        # malformed one gets a proper status.
        decode = handler.request_deserializer if handler.request_streaming else None
        make: Any = grpc.stream_stream_rpc_method_handler
        if not handler.response_streaming:
            make = grpc.stream_unary_rpc_method_handler
        made: Handler = make(wrapped, request_deserializer=decode, response_serializer=handler.response_serializer)
        return made

    async def _run(self, rpc: _Rpc, request: Any, context: Context) -> Any:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        log.bind(rpc=rpc.path)
        self._metrics.rpcs.started(rpc.kind, rpc.service, rpc.method)
        try:
            caller = self._doors.enter(rpc.scoped, context)
            self._calls.shares.hold(rpc.lasts, context)
            if caller.token is None:
                return await self._answer(rpc, request, context)
            answer = await self._doors.tokens.while_valid(caller.token, self._answer(rpc, request, context))
            self._doors.tokens.until_taken(caller.token)  # gRPC sends it in this task, and waits for its client
            return answer
        except asyncio.CancelledError:
            code = _why_cancelled(context)
            raise
        except Exception as error:  # noqa: BLE001 - the outermost wall: what passes here goes to the caller as text
            leaf = _first_leaf(error)
            if isinstance(leaf, aio.AbortError):
                code = _CODES.get(_number(context.code()), grpc.StatusCode.UNKNOWN)
                raise leaf from None
            if isinstance(leaf, aio.BaseError) and not isinstance(leaf, aio.UsageError):
                # The client went away while we wrote to it: this is how gRPC says so.
                code = grpc.StatusCode.CANCELLED
                raise leaf from None
            refusal = _status_of(leaf)
            code = _CODES[refusal.code]
        finally:
            seconds = time.perf_counter() - started
            self._metrics.rpcs.handled(rpc.kind, rpc.service, rpc.method, _code_name(code), seconds)
            _log.debug("rpc ended", extra={"code": code.name, "seconds": round(seconds, 6)})
        return await context.abort_with_status(_Status.of(refusal))

    async def _answer(self, rpc: _Rpc, request: Any, context: Context) -> Any:
        if rpc.is_standard:
            return await rpc.answer(request, context)
        with self._calls.running():
            return await rpc.answer(request, context)

    async def _refuse_unserved(self, requests: Any, context: Context) -> None:
        try:
            self._doors.enter(None, context)
        except errors.EnclaveError as error:
            await context.abort_with_status(_Status.of(_status_of(error)))
        text = "this daemon has no such method; reflection lists those it has"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)


class _Rpc(NamedTuple):
    """One method of the server."""

    path: str
    service: str
    method: str
    kind: str
    behaviour: Callable[[Any, Context], Any]
    decode: Callable[[bytes], Any] | None
    """How to decode a single request; ``None`` for a stream, whose iterator decodes."""
    scoped: str
    """Its name in the table of scopes."""

    @classmethod
    def of(cls, path: str, handler: Handler) -> _Rpc:
        service, _, method = path.removeprefix("/").partition("/")
        kinds: dict[tuple[bool, bool], tuple[str, Any]] = {
            (False, False): ("unary", handler.unary_unary),
            (False, True): ("server_stream", handler.unary_stream),
            (True, False): ("client_stream", handler.stream_unary),
            (True, True): ("bidi_stream", handler.stream_stream),
        }
        kind, behaviour = kinds[handler.request_streaming, handler.response_streaming]
        decode = None if handler.request_streaming else handler.request_deserializer
        return cls(path, service, method, kind, behaviour, decode, f"{service.rpartition('.')[2]}.{method}")

    @property
    def is_standard(self) -> bool:
        """Whether it is health or reflection, which answer to the very end."""
        return self.service.startswith("grpc.")

    @property
    def lasts(self) -> bool:
        """Whether its calls may last."""
        return lasts(self.method, self.kind != "unary")

    async def answer(self, request: Any, context: Context) -> Any:
        """Awaits and decodes a single request and runs the handler."""
        if self.decode is not None:
            request = self.decode(await first_message(request, context))
            _bind_ids(request)
        elif self.is_standard:
            request = InTime(request)
        answer = self.behaviour(request, context)
        if not isinstance(answer, AsyncGenerator):
            return await answer
        async with aclosing(answer) as messages:  # reflection, which is not ours, is a generator
            async for message in messages:
                await context.write(message)
        return None


class _Status(NamedTuple):
    """What ``abort_with_status`` wants to see."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, found: status_pb2.Status) -> Any:
        return cls(_CODES[found.code], found.message, ((_DETAILS_TRAILER, found.SerializeToString()),))


def _status_of(error: BaseException) -> status_pb2.Status:
    match error:
        case errors.Unauthenticated():  # the door has logged it, within bounds
            return status.to_status(error)
        case errors.EnclaveError():
            if status.row_of(error) is not status.INTERNAL:
                _log.info("call refused", extra={"error": type(error).__name__, "why": _why(error)})
                return status.to_status(error)
        case DecodeError():
            text = "not a valid message of this method: the bytes are malformed, or a string is not UTF-8"
            return status.to_status(errors.InvalidRequest.of("request", text))
    log_id = secrets.token_hex(8)
    _log.error("call failed by a fault of ours", exc_info=error, extra={"log_id": log_id})
    return status.internal_status(log_id)


def _why(error: errors.EnclaveError) -> str:
    """What the log says of a refusal: of a malformed request only the fields, since its text may quote the caller."""
    if isinstance(error, errors.InvalidRequest):
        return ", ".join(violation.field for violation in error.violations)
    return str(error)


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _bind_ids(request: Any) -> None:
    spec = getattr(request, "spec", request)
    log.bind(
        sandbox_id=getattr(request, "sandbox_id", "") or getattr(spec, "sandbox_id", ""),
        execution_id=getattr(request, "execution_id", "") or getattr(spec, "execution_id", ""),
    )


def _why_cancelled(context: Context) -> grpc.StatusCode:
    remaining = context.time_remaining()
    passed = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED


def _number(code: Any) -> int:
    return code.value[0] if isinstance(code, grpc.StatusCode) else int(code)


def _code_name(code: grpc.StatusCode) -> str:
    """The name as go-grpc-prometheus writes it, so that existing dashboards fit."""
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return "OK" if code is grpc.StatusCode.OK else re.sub("_", "", code.name.title())
