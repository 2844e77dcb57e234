"""Runs the application in the daemon's event loop: uvicorn, with limits on what a client may hold."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from enclaved.gateway.listener import Bounded, Counts, connections_possible

CONNECTIONS_MAX: Final = 1000
HEADER_BYTES_MAX: Final = 16 * 1024
HEADER_S: Final = 15.0
"""Time to send the head of a request."""

KEEP_ALIVE_S: Final = 30
STALL_S: Final = 30.0
"""Within this time a client takes at least `STALL_BYTES` of an answer that waits for it, or loses its connection."""
STALL_BYTES: Final = 32 * 1024
LINGER_S: Final = 5.0
"""Time to take the rest of the last answer on a connection that is closed."""
STOP_S: Final = 1
PIECE_BYTES: Final = 64 * 1024


class _Protocol(H11Protocol):
    """Ends connections on which the head of a request does not come to its end, or an answer is not taken."""

    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._lingering is not None:
            self._lingering.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def _look_again(self, waiting_bytes: int) -> None:
        self._stalled = self.loop.call_later(STALL_S, self._check_progress, waiting_bytes)

    def _check_progress(self, before_bytes: int) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        if before_bytes - waiting_bytes < STALL_BYTES:
            self.transport.abort()
        else:
            self._look_again(waiting_bytes)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADER_S, self._close)

    def _close(self) -> None:
        # Closing waits until everything is sent: to a client that takes nothing, for ever.
        self._lingering = self.loop.call_later(LINGER_S, self.transport.abort)
        self.transport.close()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _InPieces:
    """Sends long bodies in pieces, and the next one when most of the last was taken.

    Otherwise an answer would be done, and another one in its place, while all of it waits for its client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
                await send(message)
                return
            view, more = memoryview(body), message.get("more_body", False)
            for start in range(0, len(body), PIECE_BYTES):
                piece = bytes(view[start : start + PIECE_BYTES])
                is_last = start + PIECE_BYTES >= len(body)
                await send({"type": "http.response.body", "body": piece, "more_body": more or not is_last})

        await self._app(scope, receive, send_in_pieces)


class _Server(uvicorn.Server):
    """A server among others in one process: signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and says so."""
        await super().startup(sockets)
        self.is_up.set()


@asynccontextmanager
async def serving(
    app: ASGIApp,
    listener: socket.socket,
    connections_max: int = CONNECTIONS_MAX,
    counts: Counts | None = None,
    tls: ssl.SSLContext | None = None,
    share: int = 1,
) -> AsyncIterator[None]:
    """Serves on a bound socket for as long as the block runs; then gives open requests a moment and ends them.

    With ``tls`` it speaks TLS. Connections beyond ``connections_max`` are closed at once; there are fewer where this
    process may open few files. One address that is not a loopback one has at most one in ``share`` of them.
    """
    most = connections_possible(connections_max)
    config = uvicorn.Config(
        _InPieces(app),
        http=_Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # Not even a warning for each malformed request: strangers would fill the log.
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=most + 1,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        reset_contextvars=True,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    task = asyncio.create_task(server.serve([Bounded(listener, most, counts, share=share)]))
    up = asyncio.create_task(server.is_up.wait())
    try:
        await asyncio.wait((task, up), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        up.cancel()
        server.should_exit = True
        await asyncio.wait((task,), timeout=4 * STOP_S)
        task.cancel()
        await asyncio.wait((task,))
