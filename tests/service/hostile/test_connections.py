"""Clients that open connections and hold them, flood them, or say nothing on them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import system_service_pb2_grpc

from enclaved.services import _limits
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory
from tests.service.hostile import http2
from tests.service.hostile.http2 import Http2, connection
from tests.service.hostile.process import MIB, OWN_CONNECTION, code_of, daemon_process

GET_INFO = "/ms_enclave.v1.SystemService/GetInfo"
ENHANCE_YOUR_CALM = 11


@asynccontextmanager
async def served(**flags: str) -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder, **flags)) as running:
        yield running


async def asks(running: Running) -> grpc.StatusCode:
    """Asks the daemon something on a connection of its own."""
    address = f"unix:{running.settings.listen.unix}"
    async with aio.insecure_channel(address, options=OWN_CONNECTION) as own:
        stub = system_service_pb2_grpc.SystemServiceStub(own)  # type: ignore[arg-type]
        return await code_of(stub.GetInfo(system_pb.GetInfoRequest(), timeout=PATIENCE_S))


async def becomes_served(running: Running) -> None:
    """Waits until a new connection is served."""
    async with asyncio.timeout(PATIENCE_S):
        while (code := await asks(running)) is grpc.StatusCode.UNAVAILABLE:
            pass
    assert code is grpc.StatusCode.OK


async def said_hello(client: Http2) -> bool:
    """Whether the server takes part."""
    return await client.until(http2.SETTINGS) is not None


async def test_a_connection_too_many_is_closed_and_those_before_it_are_served():
    async with served(listen__connections_max="4") as running, AsyncExitStack() as stack:
        await running.system_stub.GetInfo(system_pb.GetInfoRequest())
        held = [await stack.enter_async_context(connection(running.settings.listen.unix)) for _ in range(3)]
        assert [await said_hello(client) for client in held] == [True] * 3
        late = await stack.enter_async_context(connection(running.settings.listen.unix))
        assert not await said_hello(late)
        await running.system_stub.GetInfo(system_pb.GetInfoRequest())
        await held[0].close()
        await becomes_served(running)


async def test_five_hundred_silent_connections_are_closed_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(_limits, "HANDSHAKE_MS", 3000)
    async with served() as running, AsyncExitStack() as stack:
        slow = []
        for number in range(500):
            reader, writer = await asyncio.open_unix_connection(running.settings.listen.unix)
            stack.callback(writer.close)
            writer.write(http2.PREFACE[: number % len(http2.PREFACE)])
            slow.append(reader)
        assert await asks(running) is grpc.StatusCode.OK
        async with asyncio.timeout(PATIENCE_S):
            for reader in slow:
                while await reader.read(1024):
                    pass
        assert await asks(running) is grpc.StatusCode.OK


async def test_a_connection_on_which_nothing_is_called_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_limits, "CONNECTION_IDLE_MS", 200)
    async with served() as running, connection(running.settings.listen.unix) as client:
        assert await client.until(http2.GOAWAY) is not None
        assert await asks(running) is grpc.StatusCode.OK


async def test_a_flood_of_pings_ends_its_connection():
    async with served() as running, connection(running.settings.listen.unix) as client:
        # At once: a write after the server has closed would fail, and what it said before be lost with that.
        client.write(20 * http2.encoded(http2.PING, 0, 0, bytes(8)))
        away = await client.until(http2.GOAWAY)
        assert away is not None
        assert struct.unpack(">I", away.payload[4:8])[0] == ENHANCE_YOUR_CALM
        await client.closed()
        assert await asks(running) is grpc.StatusCode.OK


def continuations(client: Http2) -> None:
    """Headers that never come to their end."""
    client.frame(http2.HEADERS, 0, 1, http2.packed(http2.call_headers(GET_INFO)))
    for number in range(2000):
        client.frame(http2.CONTINUATION, 0, 1, http2.packed([(f"x-{number}", "v" * 8000)]))


def settings(client: Http2) -> None:
    for _ in range(20_000):
        client.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 1, 4096))


def empty_data(client: Http2) -> None:
    client.begin(1, GET_INFO)
    for _ in range(50_000):
        client.frame(http2.DATA, 0, 1)


def window_updates(client: Http2) -> None:
    for _ in range(50_000):
        client.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))


def packed_headers(client: Http2) -> None:
    """One header in the table, and a thousand calls that name it five hundred times each."""
    bomb = b"\x40" + http2.packed([("x-bomb", "v" * 3000)])[1:]
    for stream in range(1, 2001, 2):
        block = http2.packed(http2.call_headers(GET_INFO)) + (bomb if stream == 1 else b"") + b"\xbe" * 500
        client.frame(http2.HEADERS, http2.END_HEADERS, stream, block)


def nonsense(client: Http2) -> None:
    for kind in range(256):
        client.frame(kind, 255, kind * 2 + 1, bytes(range(256)))


@pytest.mark.parametrize(
    ("flood", "most_mib"),
    [
        (continuations, 32),
        (settings, 32),
        (empty_data, 32),
        (window_updates, 32),
        (packed_headers, 128),  # what is named once and used again counts for each call
        (nonsense, 32),
    ],
)
async def test_a_flood_of_frames_costs_its_sender_and_nobody_else(flood: Callable[[Http2], None], most_mib: int):
    async with daemon_process() as served:
        assert await served.answers()
        before = served.memory_bytes()
        async with connection(served.socket) as client:
            reading = asyncio.create_task(client.closed())
            flood(client)
            with suppress(OSError):  # the server has had enough
                await client.drain()
            assert await served.answers()
            reading.cancel()
            await asyncio.wait([reading])
        assert served.memory_bytes() - before < most_mib * MIB


async def test_a_port_is_never_shared_with_a_second_server():
    async with served(listen__tcp="127.0.0.1:0") as running:
        host, port = running.addresses.tcp.split(":")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind((host, int(port)))


@pytest.mark.parametrize(
    "more",
    [[("x-large", "v" * 20_000)], [(f"x-{number}", "v") for number in range(1000)], [("x", "v" * 100)] * 200],
    ids=["one of 20 kB", "a thousand", "one name again and again"],
)
async def test_headers_beyond_their_limit_are_refused(more: list[tuple[str, str]]):
    async with served() as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await running.system_stub.GetInfo(system_pb.GetInfoRequest(), metadata=more)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await asks(running) is grpc.StatusCode.OK


async def test_headers_that_are_small_on_the_wire_and_large_when_unpacked_are_refused():
    async with served() as running, connection(running.settings.listen.unix) as client:
        packed_headers(client)
        answered = 0
        async for frame in client.frames():
            answered += frame.kind == http2.HEADERS and bool(frame.flags & http2.END_STREAM)
            if answered == 100:
                break
        assert answered == 100
        assert await asks(running) is grpc.StatusCode.OK


async def test_with_few_descriptors_five_hundred_clients_are_shed_and_all_goes_on():
    async with daemon_process(files_max=256) as served:
        await served.create()
        async with AsyncExitStack() as stack:
            for number in range(500):
                path = served.http_socket if number % 2 else served.socket
                try:
                    _, writer = await asyncio.open_unix_connection(path)
                except OSError:
                    continue
                stack.callback(writer.close)
                writer.write(b"" if number % 2 else http2.PREFACE)
            assert served.descriptors() < 256 - 32
        assert await served.answers()
        await served.create("after")
