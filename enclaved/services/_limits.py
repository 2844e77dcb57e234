"""What a client may hold of the gRPC server: connections, calls, and time to say what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from grpc import aio

from enclaved.core.answer_room import AnswerRoom
from enclaved.core.identity import current
from enclaved.errors import InvalidRequest, LimitReached
from enclaved.model import Identity, IdentityKind

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
METADATA_BYTES_MAX: Final = 16 * 1024
"""Of a call's headers, each with 32 bytes beside its name and value, as HTTP/2 counts them."""
FIRST_MESSAGE_S: Final = 30.0
"""A call whose message does not come within this time ends."""
HANDSHAKE_MS: Final = 10_000
CONNECTION_IDLE_MS: Final = 300_000
"""A connection without a call is closed after this time."""
BRIEF_SHARE: Final = 8
"""One in so many places for calls is kept for calls that are over soon."""

_LASTING: Final = frozenset({"Run", "RunInPool", "WaitExecution", "Claim", "CreateSandbox", "InitializePool"})

_AnyT = TypeVar("_AnyT")


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What all clients together, and each of them, may hold at once."""

    connections_max: int = 1000
    """Connections to one listener. Further ones are closed at once."""
    calls_max: int = 512
    """Calls over all connections."""
    client_calls_max: int = 384
    """Calls of one client (see `Shares`)."""

    @property
    def lasting_max(self) -> int:
        """Calls that may last, over all connections."""
        return self.calls_max - max(1, self.calls_max // BRIEF_SHARE)

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        """The server's options."""
        return (
            ("grpc.so_reuseport", 0),  # by default a second daemon would share the port without a word
            ("grpc.enable_channelz", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            # As many as calls: a client whose calls all wait for programs must still get through to cancel one.
            ("grpc.max_concurrent_streams", self.calls_max),
            # Well-behaved clients keep to what they are told of these; see `has_too_much_metadata` for the others.
            ("grpc.max_metadata_size", METADATA_BYTES_MAX // 2),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
            # From the connection's first byte to its HTTP/2 settings, with TLS or without.
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            # Finds clients that vanished without a word, also while a long execution is silent.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # Ends connections that flood us with pings.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
            # Old connections go away; calls that run on them may finish first, but not take for ever.
            ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
            ("grpc.max_connection_age_ms", 3_600_000),
            ("grpc.max_connection_age_grace_ms", 86_400_000),
        )

    @property
    def backstop(self) -> int:
        """Calls beyond which gRPC refuses by itself, without a hint: for a flood that we do not even look at."""
        return 2 * self.calls_max


DEFAULT_LIMITS: Final = EdgeLimits()


class Shares:
    """Counts calls, so that no client takes every place and no calls that last take the places of brief ones.

    A client is who showed a token; without one it is a TCP connection. Clients of a unix socket are not told
    apart, and share what all may hold.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._active = 0
        self._lasting = 0
        self._clients: dict[str, int] = {}
        self._answers = AnswerRoom()

    def hold(self, lasts: bool, context: Any) -> None:
        """Holds a place until the task of this call is done: also while its answer waits to be taken.

        What its answer takes comes out of the room for all. Raises `LimitReached`.
        """
        limits, client, task = self._limits, _client(current(), context), asyncio.current_task()
        if self._active >= limits.calls_max:
            raise _refusal("calls", limits.calls_max, "calls run at once, as many as there may be")
        if lasts and self._lasting >= limits.lasting_max:
            raise _refusal("lasting_calls", limits.lasting_max, "calls wait for programs or follow something")
        if client and self._clients.get(client, 0) >= limits.client_calls_max:
            raise _refusal("client_calls", limits.client_calls_max, "calls of this client run at once")
        self._count(1, lasts, client)
        self._answers.share()
        if task is not None:
            task.add_done_callback(lambda _: self._count(-1, lasts, client))

    def _count(self, change: int, lasts: bool, client: str) -> None:
        self._active += change
        self._lasting += change * lasts
        if client:
            self._clients[client] = self._clients.get(client, 0) + change
            if not self._clients[client]:
                del self._clients[client]


async def first_message(requests: AsyncIterator[_AnyT], context: Any) -> _AnyT:
    """Waits for the first message of a call. Raises `InvalidRequest` if none comes, or not in time."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            return await anext(requests)
    except TimeoutError:
        raise InvalidRequest.of("message", f"did not come within {FIRST_MESSAGE_S:g} s of the call's begin") from None
    except StopAsyncIteration:
        await check_end(context)
        raise InvalidRequest.of("message", "is missing: the call ended without one") from None


async def check_end(context: Any) -> None:
    """Tells a client's end of its half from a cut: gRPC ends the requests of a call that is cut in the same way.

    It says so only a moment later, by cancelling us; this does it now. But to such a call nothing can be sent any more.
    """
    try:
        await context.send_initial_metadata(())
    except aio.BaseError:
        raise asyncio.CancelledError from None


class InTime(Generic[_AnyT]):
    """The messages of a call for as long as there is no pause of more than `FIRST_MESSAGE_S` between two."""

    def __init__(self, requests: AsyncIterator[_AnyT]) -> None:
        self._requests = requests

    def __aiter__(self) -> AsyncIterator[_AnyT]:
        return self

    async def __anext__(self) -> _AnyT:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                return await anext(self._requests)
        except TimeoutError:
            raise StopAsyncIteration from None


def has_too_much_metadata(details: grpc.HandlerCallDetails) -> bool:
    """Whether the headers of a call are too large. gRPC does not look: a client that names one header of its table a
    thousand times sends kilobytes and has us keep megabytes.
    """
    left_bytes = METADATA_BYTES_MAX
    for name, value in details.invocation_metadata or ():
        left_bytes -= len(name) + len(value) + 32
        if left_bytes < 0:
            return True
    return False


async def _refuse_oversized(requests: Any, context: Any) -> None:
    text = f"the headers of the call have more than {METADATA_BYTES_MAX} bytes; send less metadata"
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


OVERSIZED: Final[grpc.RpcMethodHandler[Any, Any]] = grpc.stream_stream_rpc_method_handler(_refuse_oversized)
"""Answers calls whose headers are too large."""


def lasts(method: str, streams: bool) -> bool:
    """Whether calls of a method may last: those that stream, and those that wait for a program, an image or a place."""
    return streams or method in _LASTING


def _client(identity: Identity, context: Any) -> str:
    if identity.kind is IdentityKind.TOKEN:
        return f"token:{identity.name}"
    peer = str(context.peer())
    return "" if peer.startswith("unix") else peer


def _refusal(limit: str, most: int, what: str) -> LimitReached:
    text = f"{most} {what}; wait until some have ended, or have the operator raise listen.calls_max"
    return LimitReached("daemon", limit, text)
