"""Clients of the HTTP API that hold connections, send next to nothing, take no answer, or send what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest

from enclaved.config import ConfigError
from enclaved.daemon import _endpoint
from enclaved.gateway import intake, server
from enclaved.gateway.places import Places
from enclaved.gateway.refusals import Refused
from enclaved.model import Identity, IdentityKind
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory
from tests.service.hostile.process import MIB, Served, daemon_process

GET = b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n"
ROUTES = (
    *("/health", "/stats", "/sandboxes", "/sandbox/create", "/sandbox/box", "/sandbox/box/tools", "/sandbox/box/stop"),
    *("/sandbox/tool/execute", "/pool/initialize?pool_size=1", "/pool/execute?tool_name=x", "/openapi.json", "/docs"),
    *("/sandbox/box/archive", "/sandbox/..%2f..%2fetc", "/sandbox/%00", "/sandbox/a%0d%0ab", "/" + "x" * 9000),
)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder:
        settings = settings_in(folder, listen__http=f"unix:{folder}/h.sock", listen__connections_max="8")
        async with daemon(settings) as running:
            yield running


def path_of(running: Running) -> str:
    return running.addresses.http.removeprefix("unix:")


async def opened(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def status_of(path: str) -> bytes:
    """Asks on a connection of its own; empty if that is closed without an answer."""
    reader, writer = await opened(path)
    try:
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return (await rest(reader))[9:12]
    finally:
        writer.close()


async def value(running: Running, name: str) -> float:
    """The value of a metric without labels."""
    lines = (await running.get("/metrics"))[1].splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


async def test_a_connection_too_many_is_closed_and_counted(running: Running):
    path = path_of(running)
    async with AsyncExitStack() as stack:
        writers = []
        for _ in range(8):
            reader, writer = await opened(path)
            stack.callback(writer.close)
            writer.write(GET)
            assert await reader.readuntil(b"}")
            writers.append(writer)
        assert await status_of(path) == b""
        assert await value(running, "enclaved_http_connections") == 8
        assert await value(running, "enclaved_http_connections_refused_total") == 1
        writers[0].close()
        async with asyncio.timeout(PATIENCE_S):
            while await status_of(path) != b"200":
                pass
    async with asyncio.timeout(PATIENCE_S):
        while await value(running, "enclaved_http_connections"):
            pass


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_the_metrics_of_the_daemon_are_there_however_many_connections_say_nothing(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_endpoint, "CONNECTION_S", 0.5)
    async with short_directory() as folder, daemon(settings_in(folder)) as running, AsyncExitStack() as stack:
        host, port = running.addresses.metrics.split(":")
        readers = []
        for _ in range(100):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(sent)
            readers.append(reader)
        assert {await rest(reader) for reader in readers} == {b""}
        assert (await running.get("/metrics"))[0] == 200


async def test_requests_that_last_leave_places_for_those_that_do_not():
    async with short_directory() as folder:
        flags = {"listen__http": f"unix:{folder}/h.sock", "http__requests_max": "8"}
        transport = httpx.AsyncHTTPTransport(uds=f"{folder}/h.sock")
        async with (
            daemon(settings_in(folder, **flags)) as running,
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as api,
        ):
            created = await api.post("/sandbox/create", json={"tools_config": ["shell_executor"]})
            call = {"sandbox_id": created.json()["sandbox_id"], "tool_name": "shell_executor"}
            body = {**call, "parameters": {"command": "sleep 600"}}
            held = [asyncio.create_task(api.post("/sandbox/tool/execute", json=body)) for _ in range(7)]
            await until_active(running, 7)
            refused = await api.post("/sandbox/tool/execute", json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert (await api.get("/stats")).status_code == 200
            for task in held:
                task.cancel()
            await asyncio.wait(held)


def test_a_token_takes_its_share_of_the_places_and_others_have_theirs():
    places = Places(8)
    one, two = (Identity(name, kind=IdentityKind.TOKEN) for name in ("one", "two"))
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(places.held(one, "GET", "/stats"))
        with pytest.raises(Refused, match="of this token"), places.held(one, "GET", "/stats"):
            pass
        for _ in range(2):
            stack.enter_context(places.held(two, "GET", "/stats"))
        with pytest.raises(Refused, match=r"http\.requests_max"), places.held(two, "GET", "/stats"):
            pass
    with places.held(one, "GET", "/stats"):
        pass


async def until_active(running: Running, count: int) -> None:
    """Waits until so many executions run."""
    async with asyncio.timeout(PATIENCE_S):
        while await value(running, "enclaved_executions_active") != count:
            pass


async def test_a_body_that_comes_too_slowly_is_given_up_though_it_never_stops(
    running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "IDLE_S", 0.5)
    reader, writer = await opened(path_of(running))
    writer.write(b"POST /sandbox/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")

    async def drip() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.05)  # as a slow client does

    dripping = asyncio.create_task(drip())
    await rest(reader)
    dripping.cancel()
    line = 'enclaved_http_requests_total{code="408",route="/sandbox/create"} 1.0'
    async with asyncio.timeout(PATIENCE_S):
        while line not in (await running.get("/metrics"))[1]:
            pass
    writer.close()


async def test_an_upload_whose_taker_is_slow_is_not_too_slow(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "IDLE_S", 0.3)
    chunks = intake.body_chunks(Arriving([b"x" * 10] * 3), 1000)  # type: ignore[arg-type]
    async for _ in chunks:
        await asyncio.sleep(0.2)  # as a slow disk does


class Arriving:
    """A request whose body is there already."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.headers: dict[str, str] = {}
        self._pieces = pieces

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


async def test_a_client_that_takes_no_answer_loses_its_connection(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "STALL_S", 0.3)
    transport = httpx.AsyncHTTPTransport(uds=path_of(running))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as api:
        created = await api.post("/sandbox/create", json={"tools_config": ["python_executor"]})
    call = {"sandbox_id": created.json()["sandbox_id"], "tool_name": "python_executor"}
    body = json.dumps({**call, "parameters": {"code": "print('x' * 3_000_000)"}}).encode()
    reader, writer = await asyncio.open_unix_connection(path_of(running), limit=1024)
    head = f"POST /sandbox/tool/execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    async with asyncio.timeout(PATIENCE_S):
        while await value(running, "enclaved_http_connections"):
            pass
    assert len(await rest(reader)) < 3_000_000
    writer.close()


async def test_answers_that_nobody_takes_end_where_there_is_no_more_room():
    async with daemon_process(http__requests_max="200", listen__connections_max="300") as served:
        transport = httpx.AsyncHTTPTransport(uds=served.http_socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as api:
            created = await api.post("/sandbox/create", json={"tools_config": ["python_executor"]})
            sandbox_id = created.json()["sandbox_id"]
            call = {"sandbox_id": sandbox_id, "tool_name": "python_executor"}
            body = json.dumps({**call, "parameters": {"code": "print('x' * 3_900_000)"}}).encode()
            before = served.memory_bytes()
            async with AsyncExitStack() as stack:
                for _ in range(100):
                    reader, writer = await asyncio.open_unix_connection(served.http_socket, limit=1024)
                    stack.callback(writer.close)
                    head = f"POST /sandbox/tool/execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                grown = served.memory_bytes() - before
        assert grown < 300 * MIB


async def test_bytes_that_are_no_http_and_requests_made_at_random_are_never_our_fault():
    rng = random.Random(34)
    async with daemon_process(
        limits__sandboxes_max="2", limits__timeout_max_s="1", limits__timeout_default_s="1"
    ) as served:
        statuses = set()
        for _ in range(400):
            statuses.add(await answer_to(served, request(rng)))
        assert statuses & {b"500", b"502"} == set()
        assert statuses & {b"200", b"400", b"404", b"405", b"422"}
        assert await status_of(served.http_socket) == b"200"
        assert "Invalid HTTP" not in served.log


async def answer_to(served: Served, sent: bytes) -> bytes:
    """Sends bytes, ends our half and returns the status of what comes back; empty if nothing does."""
    reader, writer = await opened(served.http_socket)
    try:
        writer.write(sent)
        writer.write_eof()
        return (await rest(reader))[9:12]
    except OSError:
        return b""
    finally:
        writer.close()


def request(rng: random.Random) -> bytes:
    """Makes a request that is more or less one."""
    method = rng.choice(("GET", "POST", "DELETE", "PUT", "OPTIONS", "PATCH", "HEAD", "TRACE", "X" * 100, "get"))
    headers = {"Host": "localhost", "Connection": "close"}
    body = rng.choice(
        (b"", b"{}", b"null", b"[1]", b'{"a": 1, "a": 2}', b"[" * 9000, rng.randbytes(200), b'{"timeout": -1}')
    )
    for name, values in {
        "Content-Type": ("application/json", "text/plain", "application/json; charset=utf-7", ""),
        "Transfer-Encoding": ("chunked", "gzip, chunked", "identity"),
        "Expect": ("100-continue", "200-ok"),
        "Upgrade": ("websocket", "h2c"),
        "Range": ("bytes=0-18446744073709551615",),
        "Cookie": ("x" * 5000,),
        "X-Forwarded-For": ("127.0.0.1",),
        "Origin": ("http://evil.example", "null"),
    }.items():
        if rng.random() < 0.25:
            headers[name] = rng.choice(values)
    if rng.random() < 0.8:
        headers["Content-Length"] = str(rng.choice((len(body), len(body), len(body), len(body) + 5, -1, 10**30)))
    lines = [f"{method} {rng.choice(ROUTES)} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    if rng.random() < 0.2:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(3) + data[at + rng.randrange(4) :]
    return data


def test_settings_without_a_number_of_connections_that_makes_sense_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"listen\.connections_max must be greater than 0"):
        settings_in(tmp_path, listen__connections_max="0")
