"""The wall in front of every route: hosts, origins, keys, how many at once, the count, and faults of ours."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enclaved import log
from enclaved.gateway.refusals import Refused, answer_to
from enclaved.metrics import Metrics

_log = logging.getLogger(__name__)

HASHED: Final = "sha256:"
"""What a key starts with that is given by its digest, in hexadecimal."""

_LOOPBACK_NAMES: Final = frozenset({"localhost"})


class Gate(Protocol):
    """Counts calls, and refuses new ones while the daemon stops."""

    def running(self) -> AbstractContextManager[None]:
        """Counts a call for as long as the block runs. Raises `ShuttingDown`."""
        ...


class Access:
    """Who may call."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        *,
        key_in_url: bool = False,
        hosts: Collection[str] | None = (),
        requests_max: int = 100,
    ) -> None:
        """Takes keys, or digests of keys (`HASHED`); without any, whoever reaches the listener may call.

        ``hosts`` are names of this server beside loopback ones and addresses; ``None`` allows any, for a unix socket.
        """
        self._digests = tuple(_digest_of(key) for key in keys)
        self._key_in_url = key_in_url
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self.requests_max = requests_max

    def check_host(self, headers: Headers) -> None:
        """Refuses what web pages send here, under names of their own or from elsewhere. Raises `Refused`."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if self._hosts is not None and not (_is_address(name) or name in _LOOPBACK_NAMES or name in self._hosts):
            raise Refused(400, "this server is not known under the Host of the request; see the setting http.hosts")
        origin = headers.get("origin")
        if origin is not None and hosts != [origin.rpartition("://")[2]]:
            raise Refused(403, "requests of web pages of other origins are refused")

    def check_key(self, headers: Headers, query: bytes) -> None:
        """Refuses requests without a valid key, where keys are needed. Raises `Refused`."""
        if not self._digests:
            return
        given = [*headers.getlist("x-api-key"), *_bearers(headers.getlist("authorization"))]
        if self._key_in_url:
            given += parse_qs(query.decode("latin-1")).get("api_key", [])
        # Digests have one length and are compared in constant time, all of them, whichever fits.
        found = [
            hmac.compare_digest(hashlib.sha256(key.encode("latin-1", "replace")).digest(), digest)
            for key in given[:2]
            for digest in self._digests
        ]
        if not any(found):
            text = "Invalid or missing API key; send it as X-API-Key or as Authorization: Bearer"
            raise Refused(401, text, {"WWW-Authenticate": "Bearer"})


class Guard:
    """An ASGI application round another. What passes it has a known host and a key; nothing but our texts gets out."""

    def __init__(self, app: ASGIApp, *, access: Access, metrics: Metrics, gate: Gate) -> None:
        self._app, self._access, self._metrics, self._gate = app, access, metrics, gate
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        started = time.perf_counter()
        log.bind(http=f"{scope['method'][:16]} {scope['path'][:100]}")
        try:
            await self._admitted(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - the outermost wall: what passes here would reach the caller
            if not answer.status:  # FastAPI raises again what it has answered already
                await answer_to(error)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.http_request(route, answer.status)
            seconds = round(time.perf_counter() - started, 6)
            _log.debug("request ended", extra={"code": answer.status, "seconds": seconds})

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        self._access.check_host(headers)
        self._access.check_key(headers, scope["query_string"])
        if self._active >= self._access.requests_max:
            text = f"this server handles {self._active} requests at once, its limit (http.requests_max); try again"
            raise Refused(429, text, {"Retry-After": "1"})
        self._active += 1
        try:
            with self._gate.running():
                await self._app(scope, receive, answer)
        finally:
            self._active -= 1


class _Answer:
    """Passes the answer on, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
        await self._send(message)


def _digest_of(key: str) -> bytes:
    if key.startswith(HASHED):
        return bytes.fromhex(key.removeprefix(HASHED))
    return hashlib.sha256(key.encode()).digest()


def _bearers(values: Iterable[str]) -> list[str]:
    pairs = [value.partition(" ") for value in values]
    return [token.strip() for scheme, _, token in pairs if scheme.lower() == "bearer"]


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    # A page can have its own name resolve to this machine, but not an address.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
