"""An ASGI application that forwards every request to a daemon's HTTP listener, as it comes and as it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from ms_enclave._embedded import EmbeddedDaemon, HttpListener
from ms_enclave._model import SandboxManagerConfig
from ms_enclave._transports.http import HttpTransport
from ms_enclave._transports.http_calls import parse_base_url
from ms_enclave._transports.sessions import Sessions
from ms_enclave.errors import DaemonStartFailed, EnclaveError

SYSTEM_HTTP_SOCKET: Final = Path("/run/enclaved/http.sock")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_NOT_FORWARDED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade", "expect", "accept-encoding"),
    }
)
"""Headers that speak of one connection and not of the request; and what each of the two agrees on for itself."""
_NOT_ADDED: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Upstream:
    """The daemon behind the application: one that is there, or one that is started when it is first needed."""

    def __init__(self, config: SandboxManagerConfig, make_pool: Callable[[HttpTransport], Awaitable[None]]) -> None:
        self._config = config
        self._make_pool = make_pool
        self._embedded: EmbeddedDaemon | None = None
        self._sessions: tuple[str, Sessions] | None = None

    async def reach(self) -> tuple[Sessions, str]:
        """Finds or starts the daemon. Returns the way to it, and what paths are appended to.

        Raises `DaemonStartFailed`, and what the making of a pool raises.
        """
        url = self._config.base_url
        if not url and self._embedded is None and not self._config.api_key and not self._config.pool_size:
            url = f"unix:{SYSTEM_HTTP_SOCKET}" if _answers(SYSTEM_HTTP_SOCKET) else None
        if not url:
            url = await self._started()
        unix, root = parse_base_url(url)
        if self._sessions is None or self._sessions[0] != url:
            self._sessions = url, Sessions(unix=unix)
        return self._sessions[1], root

    async def _started(self) -> str:
        if self._embedded is None:
            self._embedded = EmbeddedDaemon(HttpListener(api_key=self._config.api_key))
        url = self._embedded.http_url
        if url is None:
            await asyncio.to_thread(self._embedded.ensure)
            url = self._embedded.http_url
            if url is None:
                raise DaemonStartFailed("the embedded daemon ended as soon as it had started")
            await self._make_pool(HttpTransport(url, api_key=self._config.api_key))
        return url

    async def close(self) -> None:
        """Closes the connections of this loop, and ends the daemon if it was started here."""
        if self._sessions is not None:
            await self._sessions[1].close()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)


class ForwardingApp:
    """The documented routes as an ASGI application."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or follows the life of the web server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._until_left(scope, _Body(receive, expected=_has_body(scope["headers"])), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                try:
                    await self._upstream.reach()
                except EnclaveError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif kind == "lifespan.shutdown":
                await self._upstream.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _until_left(self, scope: Scope, body: _Body, send: Send) -> None:
        """Forwards a request, and gives it up when its client leaves, so that what runs for it ends as well."""
        forwarding = asyncio.ensure_future(self._forward(scope, body, send))
        leaving = asyncio.ensure_future(body.left())
        try:
            await asyncio.wait((forwarding, leaving), return_when=asyncio.FIRST_COMPLETED)
            if forwarding.done():
                forwarding.result()
        finally:
            for task in (forwarding, leaving):
                task.cancel()
            await asyncio.wait((forwarding, leaving))

    async def _forward(self, scope: Scope, body: _Body, send: Send) -> None:
        begun = False
        try:
            sessions, root = await self._upstream.reach()
            session = await sessions.session()
            headers = _headers(scope["headers"])
            async with session.request(
                scope["method"],
                URL(f"{root}{_target(scope)}", encoded=True),
                headers=headers,
                data=body.pieces() if body.expected else None,
                allow_redirects=False,
                skip_auto_headers=_NOT_ADDED,
            ) as answer:
                kept = [(k.lower(), v) for k, v in answer.raw_headers if k.lower().decode() not in _NOT_FORWARDED]
                begun = True
                await send({"type": "http.response.start", "status": answer.status, "headers": kept})
                async for data in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (EnclaveError, aiohttp.ClientError, OSError) as error:
            if begun:
                raise
            await _refuse(send, 503, f"the daemon behind this server does not answer: {error}")


class _Body:
    """The body of a request as it arrives, and the news that its client has left."""

    def __init__(self, receive: Receive, *, expected: bool) -> None:
        self._receive = receive
        self.expected = expected
        self._ended = asyncio.Event()
        self._gone = False
        if not expected:
            self._ended.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields it. Raises ``ConnectionResetError`` if the client leaves before its end."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                self._ended.set()
                raise ConnectionResetError("the client left")
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
        self._ended.set()

    async def left(self) -> None:
        """Returns when the client has left."""
        await self._ended.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"


def _target(scope: Scope) -> str:
    """Returns path and query as the client wrote them, below where the application is mounted."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
    path = raw.decode("ascii", "replace").partition("?")[0]
    root = quote(scope.get("root_path", ""), safe="/:@!$&'()*+,;=~")
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    query = scope.get("query_string", b"").decode("ascii", "replace")
    return f"{path}?{query}" if query else path


def _headers(given: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in given]
    return [(name, value) for name, value in pairs if name.lower() not in _NOT_FORWARDED]


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    given = {name.lower(): value for name, value in headers}
    return b"transfer-encoding" in given or given.get(b"content-length", b"0") != b"0"


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False
