"""An engine that lies: a proxy before the real one that changes what is asked of it and what it answers.

What a sabotage changes in a create body, its answers show as it was asked for, so that only a look at what is
effective finds it. Each connection carries one request, so that nothing has to be followed for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENGINE = "/var/run/docker.sock"
HEAD_MOST = 64 * 1024
_PREFIX = re.compile(r"^/v\d+\.\d+")

Change = Callable[[dict[str, Any]], None]


def nothing(document: dict[str, Any]) -> None:
    """Changes nothing."""


@dataclass
class Lies:
    """What is changed on the way."""

    create: Change = nothing
    """Of what is asked for."""
    info: Change = nothing
    """Of what the engine says of itself."""
    inspect: Change = nothing
    """Of what it says of a container, beside what ``honest`` leaves as it is."""
    honest: bool = False
    """Whether it says what it did, and not what was asked for."""
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The create bodies by the container's name."""
    open: set[asyncio.Task[None]] = field(default_factory=set)
    """The connections that there are."""

    def cut(self) -> None:
        """Ends every connection, as an engine does that is restarted."""
        for task in self.open:
            task.cancel()


@asynccontextmanager
async def lying_engine(folder: Path, lies: Lies) -> AsyncIterator[str]:
    """The address of an engine that lies, for as long as the block runs."""

    def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve(reader, writer, lies))
        lies.open.add(task)
        task.add_done_callback(lies.open.discard)

    server = await asyncio.start_unix_server(met, folder / "engine.sock", limit=HEAD_MOST)
    try:
        yield f"unix://{folder}/engine.sock"
    finally:
        server.close()
        lies.cut()
        await asyncio.gather(*lies.open, return_exceptions=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lies: Lies) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        try:
            await _request(reader, writer, lies)
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lies: Lies) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, _, rest = head.partition("\r\n")
    method, target, _ = first.split(" ")
    path = _PREFIX.sub("", target)
    if "upgrade:" not in rest.lower():
        rest = re.sub(r"(?im)^connection:.*\r\n", "", rest)
        rest = f"Connection: close\r\n{rest}"
    theirs, ours = await asyncio.open_unix_connection(ENGINE)
    try:
        if method == "POST" and path.startswith("/containers/create"):
            length = int(_header(rest, "content-length"))
            document = json.loads(await reader.readexactly(length))
            lies.asked[path.partition("name=")[2].partition("&")[0]] = json.loads(json.dumps(document))
            lies.create(document)
            body = json.dumps(document).encode()
            rest = re.sub(r"(?im)^content-length:.*\r\n", f"Content-Length: {len(body)}\r\n", rest)
            ours.write(f"{first}\r\n{rest}".encode("latin-1") + body)
        else:
            ours.write(f"{first}\r\n{rest}".encode("latin-1"))
        if method == "GET" and path == "/info":
            await _answer(theirs, writer, lies.info)
        elif method == "GET" and re.fullmatch(r"/containers/[^/]+/json", path):
            await _answer(theirs, writer, lambda document: _describe(document, lies))
        else:
            await _tunnel((reader, ours), (theirs, writer))
    finally:
        ours.close()


def _describe(document: dict[str, Any], lies: Lies) -> None:
    """Shows a container as it was asked for."""
    asked = lies.asked.get(str(document.get("Name", "")).lstrip("/"))
    if asked is not None and not lies.honest:
        body = dict(asked)
        document["HostConfig"].update({name: value for name, value in body.pop("HostConfig").items() if value})
        for name in [name for name in document["HostConfig"] if not asked["HostConfig"].get(name, True)]:
            document["HostConfig"][name] = asked["HostConfig"][name]
        document["Config"].update({name: value for name, value in body.items() if name in ("User", "NetworkDisabled")})
        document["NetworkSettings"]["Networks"] = {asked["HostConfig"]["NetworkMode"]: {}}
        targets = {mount["Target"] for mount in asked["HostConfig"]["Mounts"]}
        document["Mounts"] = [mount for mount in document["Mounts"] if mount["Destination"] in targets]
    lies.inspect(document)


async def _answer(theirs: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
    """Hands an answer on with a change in its document; one that is no success as it is."""
    whole = await theirs.read(-1)
    head, _, body = whole.partition(b"\r\n\r\n")
    if b" 200 " in head.split(b"\r\n")[0]:
        document = json.loads(_dechunked(body) if b"chunked" in head.lower() else body)
        change(document)
        body = json.dumps(document).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close"
        head += f"\r\nContent-Length: {len(body)}".encode()
    writer.write(head + b"\r\n\r\n" + body)
    await writer.drain()


def _dechunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


async def _tunnel(*directions: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Hands bytes on in both directions until both have ended."""

    async def hand_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.write_eof()

    up, down = (asyncio.create_task(hand_on(*direction)) for direction in directions)
    try:
        await down
    finally:
        up.cancel()


def _header(head: str, name: str) -> str:
    found = re.search(rf"(?im)^{name}:\s*(.*?)\r\n", head)
    return found[1] if found else "0"
