"""The wall in front of every route: hosts, origins, who calls, how many at once, the count, and faults of ours."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Protocol
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enclaved import log
from enclaved.core.access import Caller, Door, bearers
from enclaved.core.identity import act_as
from enclaved.errors import Unauthenticated
from enclaved.gateway.hosts import Foreign, Hosts
from enclaved.gateway.places import Places
from enclaved.gateway.refusals import Refused, answer_to
from enclaved.gateway.scoped import Refusal, method_of
from enclaved.metrics import Metrics

_log = logging.getLogger(__name__)


class Gate(Protocol):
    """Counts calls, and refuses new ones while the daemon stops."""

    def running(self) -> AbstractContextManager[None]:
        """Counts a call for as long as the block runs. Raises `ShuttingDown`."""
        ...


class Entrance:
    """What is asked of a request before it gets to a route."""

    def __init__(
        self,
        door: Door,
        *,
        key_in_url: bool = False,
        hosts: Collection[str] | None = (),
        requests_max: int = 100,
    ) -> None:
        """``door`` finds out who calls.

        ``hosts`` are names of this server beside loopback ones and addresses; ``None`` allows any, for a unix socket.
        """
        self.door = door
        self._key_in_url = key_in_url
        self._hosts = Hosts(hosts)
        self.requests_max = requests_max

    def check_host(self, headers: Headers) -> None:
        """Refuses what web pages send here, under names of their own or from elsewhere. Raises `Refused`."""
        try:
            self._hosts.check(headers.getlist("host"), headers.getlist("origin"))
        except Foreign as error:
            raise Refused(error.status, str(error)) from None

    def identify(self, scope: Scope, headers: Headers) -> Caller:
        """Finds out who calls. Raises `Unauthenticated` for a request without a valid key, where one is needed."""
        shown = [*headers.getlist("x-api-key"), *bearers(headers.getlist("authorization"))]
        if self._key_in_url:
            shown += parse_qs(scope["query_string"].decode("latin-1")).get("api_key", [])
        client = scope.get("client")
        return self.door.identify(shown, client[0] if client else "")

    def check(self, scope: Scope, caller: Caller) -> None:
        """Raises `Refused` where there is no such route, and `PolicyDenied` where it is not open to the caller."""
        found = method_of(scope["method"], scope["path"])
        if not isinstance(found, Refusal):
            self.door.check(caller.identity, found)
        elif found.allowed:
            raise Refused(405, "Method Not Allowed", {"Allow": ", ".join(found.allowed)})
        else:
            raise Refused(404, "Not Found")


def check_framing(scope: Scope, headers: Headers) -> None:
    """Refuses a body whose end a proxy in front could see elsewhere, so that what follows is another's request to it.

    Raises `Refused`, and ends the connection.
    """
    if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] != "1.1"):
        text = "a body has a Content-Length or, in HTTP/1.1, is sent in chunks; say one of them"
        raise Refused(400, text, {"Connection": "close"})


class Guard:
    """An ASGI application round another. What passes it has a known host and an identity; only our texts get out."""

    def __init__(self, app: ASGIApp, *, entrance: Entrance, metrics: Metrics, gate: Gate) -> None:
        self._app, self._entrance, self._metrics, self._gate = app, entrance, metrics, gate
        self._places = Places(entrance.requests_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        started = time.perf_counter()
        log.bind(http=f"{scope['method'][:16]} {scope['path'][:100]}")
        try:
            await self._admitted(scope, receive, answer)
        except Unauthenticated:
            if not answer.status:  # else the token was revoked meanwhile, and the connection ends here
                text = "Invalid or missing API key; send a key or a token as X-API-Key or as Authorization: Bearer"
                await answer_to(Refused(401, text, {"WWW-Authenticate": "Bearer"}))(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - the outermost wall: what passes here would reach the caller
            if not answer.status:  # FastAPI raises again what it has answered already
                await answer_to(error)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self._metrics.http.answered(route, answer.status)
            seconds = round(time.perf_counter() - started, 6)
            _log.debug("request ended", extra={"code": answer.status, "seconds": seconds})

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        check_framing(scope, headers)
        self._entrance.check_host(headers)
        caller = self._entrance.identify(scope, headers)
        act_as(caller.identity)
        with self._places.held(caller.identity, scope["method"], scope["path"]):
            self._entrance.check(scope, caller)
            with self._gate.running():
                work = self._app(scope, receive, answer)
                if caller.token is None:
                    await work
                else:
                    log.bind(caller=caller.identity.name)
                    await self._entrance.door.tokens.while_valid(caller.token, work)


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
