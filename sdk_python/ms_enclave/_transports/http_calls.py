"""One HTTP call at a time: sends it, tries again, and speaks our errors instead of the library's."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from ms_enclave._transports import http_errors
from ms_enclave._transports.credentials import HTTPS, check_http, ssl_context, told_ca
from ms_enclave._transports.retry import Retries
from ms_enclave._transports.sessions import Sessions
from ms_enclave.errors import (
    DaemonUnavailable,
    DeadlineExceeded,
    EnclaveError,
    InternalError,
    InvalidRequest,
    Unavailable,
)

Content = Callable[[], AsyncIterator[bytes]]

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""Unpacked. The largest answer of a server that keeps to its limits is smaller: two outputs of 4 MiB, escaped."""
_PIECE_BYTES: Final = 256 * 1024
_HINT: Final = "start one with 'ms-enclave server' or 'python -m ms_enclave.run_server', or correct base_url"
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Request:
    """A call. What it sends is JSON text, or pieces of a body that are asked for anew at each attempt."""

    method: str
    path: str
    """Percent-encoded, from the root of the API."""
    query: Mapping[str, str] | None = None
    body: str | Content | None = None
    length_bytes: int | None = None
    """How long the pieces are together."""
    repeatable: bool = False
    """Whether to do it twice is to do it once. Any call is repeated that certainly never arrived, or was refused
    because something does not answer at the moment."""


@dataclass(slots=True)
class _Attempt:
    sent: bool = False
    """Whether a connection was made, so that the server may have done what was asked."""


class HttpCalls:
    """Calls to the server at one URL, from any event loop."""

    def __init__(self, base_url: str, api_key: str | None = None, trusted: ssl.SSLContext | None = None) -> None:
        """Takes ``http://host:port``, ``https://…`` or ``unix:/path/to/socket``. Raises `InvalidRequest`."""
        self.address = base_url
        unix, self._root = parse_base_url(base_url)
        check_http(base_url, api_key or "")
        if trusted is None and self._root.startswith(HTTPS):
            trusted = ssl_context(told_ca())
        self._sessions = Sessions(unix=unix, headers=key_header(api_key), trusted=trusted)
        self._reached = False

    def retries(self) -> Retries:
        """Makes the waits of one call."""
        return Retries(reached=self._reached)

    def no_retries(self) -> Retries:
        """Makes the waits of a call that is made once, whatever happens."""
        return Retries(reached=self._reached, allowed=False)

    async def call(self, request: Request, *, timeout_s: float, retries: Retries | None = None) -> Any:
        """Makes a call and returns the JSON of its answer. ``timeout_s`` is the deadline of each attempt."""
        left = self.retries() if retries is None else retries
        while True:
            attempt = _Attempt()
            try:
                return await self._once(request, timeout_s, attempt)
            except Unavailable as error:
                refused = not isinstance(error, DaemonUnavailable)
                wait_s = left.wait_s(error) if request.repeatable or refused or not attempt.sent else None
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Closes the connections of the running loop."""
        await self._sessions.close()

    async def _once(self, request: Request, timeout_s: float, attempt: _Attempt) -> Any:
        session = await self._sessions.session()
        headers, data = _body(request)
        url = URL(f"{self._root}{request.path}", encoded=True)
        if request.query:
            url = url.with_query(request.query)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await session.request(request.method, url, data=data, headers=headers, allow_redirects=False)
                async with answer:
                    attempt.sent = True
                    body = await _read(answer, self.address)
        except aiohttp.ClientConnectionError as error:
            attempt.sent = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise self._unanswered(error, attempt) from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            attempt.sent = True
            raise DaemonUnavailable(
                f"what answers at {self.address} does not speak HTTP as it should ({_words(error)}); {_HINT}"
            ) from error
        except TimeoutError:
            attempt.sent = True
            raise DeadlineExceeded(
                f"the server at {self.address} did not answer within {timeout_s:g} seconds"
            ) from None
        if answer.status != 200:
            refusal = http_errors.error_of(answer.status, body, answer.headers, url=self.address)
            self._reached = self._reached or not isinstance(refusal, DaemonUnavailable)
            raise refusal
        self._reached = True
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise InternalError(f"the server at {self.address} answered {request.path} with no JSON") from None

    def _unanswered(self, error: aiohttp.ClientConnectionError, attempt: _Attempt) -> EnclaveError:
        if isinstance(error, aiohttp.ClientSSLError):
            return DaemonUnavailable(
                f"no trusted connection to {self.address} ({_words(error)}); correct base_url, or set "
                "MS_ENCLAVE_CA to the file with the certificate of the authority that signed the server's"
            )
        if self._reached:
            return DaemonUnavailable(f"the server at {self.address} stopped answering: {_words(error)}")
        if attempt.sent:
            return DaemonUnavailable(
                f"what answers at {self.address} ended the connection ({_words(error)}); is it a server for HTTP? "
                f"{_HINT}"
            )
        return DaemonUnavailable(f"no server answers at {self.address} ({_words(error)}); {_HINT}")


async def _read(answer: aiohttp.ClientResponse, address: str) -> bytes:
    found = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE_BYTES):
        found += piece
        if len(found) > ANSWER_BYTES_MAX:
            answer.close()
            raise InternalError(f"the server at {address} answered with more than {ANSWER_BYTES_MAX} bytes")
    return bytes(found)


def parse_base_url(text: str) -> tuple[str | None, str]:
    """Reads an address: the socket to connect to, if it names one, and what every path is appended to.

    Raises `InvalidRequest` for one that is none.
    """
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        return path, "http://localhost"
    try:
        url = URL(text)
        known = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        known = False
    if not known:
        raise InvalidRequest(f"base_url: {text!r} is no address of a server; write http://host:port")
    if url.user is not None or url.raw_query_string or url.fragment:
        raise InvalidRequest("base_url: may have a host, a port and a path only; a key goes into api_key")
    return None, str(url).rstrip("/")


def key_header(api_key: str | None) -> dict[str, str]:
    """Makes the header that carries a key. Raises `InvalidRequest` for one that no header can carry."""
    if not api_key:
        return {}
    if not _KEY.fullmatch(api_key):
        raise InvalidRequest("api_key: may have visible ASCII characters only")
    return {"X-API-Key": api_key}


def _body(request: Request) -> tuple[dict[str, str], Any]:
    if request.body is None:
        return {}, None
    if isinstance(request.body, str):
        return {"Content-Type": "application/json"}, request.body.encode()
    headers = {"Content-Type": "application/x-tar"}
    if request.length_bytes is not None:
        headers["Content-Length"] = str(request.length_bytes)
    return headers, request.body()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
