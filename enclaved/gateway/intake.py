"""Reads what clients send: bodies within limits and without waiting for ever; and sees when they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

from enclaved import strict_json
from enclaved.gateway.refusals import Refused

JSON_BYTES_MAX: Final = 1024 * 1024
IDLE_S: Final = 30.0
"""A client that sends nothing for so long loses its upload."""
PACE_BYTES_PER_S: Final = 8 * 1024
"""Beyond `IDLE_S` a body comes at least so fast on the whole: a byte now and then is not enough."""

_AnyT = TypeVar("_AnyT")


async def body_chunks(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yields a body as it arrives. Raises `Refused`: 413 beyond the limit, 408 where nothing comes, or next to nothing.

    Time that whoever takes the chunks needs for them does not count.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:30]) > limit_bytes:
        raise _too_large(limit_bytes)
    left_bytes = limit_bytes
    stream = request.stream()
    clock = asyncio.get_running_loop().time
    waited_s = 0.0
    while True:
        enough_s = IDLE_S + (limit_bytes - left_bytes) / PACE_BYTES_PER_S
        started = clock()
        try:
            async with asyncio.timeout(min(IDLE_S, enough_s - waited_s)):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise _too_slow() from None
        waited_s += clock() - started
        if chunk is None:
            return
        left_bytes -= len(chunk)
        if left_bytes < 0:
            raise _too_large(limit_bytes)
        if chunk:
            yield chunk


async def json_body(request: Request) -> Any:
    """Reads a JSON body; ``None`` where there is none. Raises `Refused`, or what FastAPI raises for bad JSON."""
    data = b"".join([chunk async for chunk in body_chunks(request, JSON_BYTES_MAX)])
    if not data:
        return None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refused(415, "send the body as JSON, with Content-Type: application/json")
    try:
        return strict_json.loads(data.decode())
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except strict_json.NotJson as error:
        if error.position is None:
            raise Refused(400, f"the body {error}") from None
        wrong = {"type": "json_invalid", "loc": ("body", error.position), "msg": "JSON decode error", "input": {}}
        raise RequestValidationError([{**wrong, "ctx": {"error": str(error)}}]) from None


async def json_object(request: Request) -> dict[str, Any] | None:
    """Reads a JSON body that is an object; ``None`` where there is none, or null."""
    found = await json_body(request)
    if found is None or isinstance(found, dict):
        return found
    wrong = {"type": "dict_type", "loc": ("body",), "msg": "Input should be a valid dictionary", "input": None}
    raise RequestValidationError([wrong])


async def while_connected(request: Request, work: Coroutine[Any, Any, _AnyT]) -> _AnyT:
    """Does the work, and gives it up as soon as the client leaves. The body must have been read.

    Raises `ClientDisconnect`.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return await doing
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait((doing,))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_slow() -> Refused:
    text = f"the body stopped: nothing came for {IDLE_S:g} s, or less than {PACE_BYTES_PER_S} bytes per second"
    return Refused(408, text, {"Connection": "close"})


def _too_large(limit_bytes: int) -> Refused:
    text = f"the body has more than {limit_bytes} bytes; send less at once"
    return Refused(413, text, {"Connection": "close"})
