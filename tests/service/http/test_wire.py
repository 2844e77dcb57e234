"""What happens on the connection itself: slow clients, clients that leave, bodies that nobody reads."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from enclaved.core.files import Files
from enclaved.gateway import intake, server
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in


async def opened(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a connection."""
    return await asyncio.open_unix_connection(running.addresses.http.removeprefix("unix:"))


async def ends(reader: asyncio.StreamReader) -> bytes:
    """Waits until the other side closes, and returns what it sent."""
    async with asyncio.timeout(PATIENCE_S):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"GET /stats HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_a_client_that_does_not_finish_its_request_is_cut_off(
    running: Running, sent: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "HEADER_S", 0.2)
    reader, writer = await opened(running)
    writer.write(sent)
    assert await ends(reader) == b""
    writer.close()


async def test_a_second_request_must_come_to_its_end_too(running: Running, monkeypatch: pytest.MonkeyPatch):
    reader, writer = await opened(running)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert (await reader.readuntil(b"}")).endswith(b"}")
    monkeypatch.setattr(server, "HEADER_S", 0.2)
    writer.write(b"GET ")
    async with asyncio.timeout(PATIENCE_S):
        while await reader.read(1000):
            pass
    writer.close()


async def test_a_body_that_stops_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "IDLE_S", 0.2)
    reader, writer = await opened(running)
    writer.write(b"POST /sandbox/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    answer = await ends(reader)
    assert answer.startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_large_head_is_refused(running: Running):
    reader, writer = await opened(running)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 100_000)
    assert (await ends(reader)).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(running: Running):
    reader, writer = await opened(running)
    size = 10 * 2**30
    writer.write(b"POST /sandbox/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
    answer = await ends(reader)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"has more than 1048576 bytes" in answer
    writer.close()


async def test_an_archive_that_is_too_large_is_refused(folder: Path):
    settings = settings_in(folder, listen__http=f"unix:{folder}/h.sock", http__archive_max_bytes="100000")
    async with daemon(settings) as running:
        transport = httpx.AsyncHTTPTransport(uds=f"{folder}/h.sock")
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as api:
            sandbox_id = (await api.post("/sandbox/create")).json()["sandbox_id"]
            answer = await api.post(f"/sandbox/{sandbox_id}/archive", content=bytes(100_001))
            assert (answer.status_code, "100000 bytes" in answer.text) == (413, True)
            assert running.addresses.http == f"unix:{folder}/h.sock"


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("there", [b"", b"from before"])
async def test_of_an_upload_that_is_cut_no_half_file_stays(
    running: Running, api: httpx.AsyncClient, framing: str, pack: Callable[[bytes], bytes], there: bytes
):
    sandbox_id = (await api.post("/sandbox/create", json={"tools_config": ["shell_executor"]})).json()["sandbox_id"]
    here = (await shell(api, sandbox_id, "pwd")).strip()
    if there:
        await api.post(f"/sandbox/{sandbox_id}/archive", params={"target_dir": here}, content=packed(data=there))
    body = pack(packed(first=b"whole", data=random.Random(1).randbytes(400_000)))
    sent = body[:300_000]
    _, writer = await opened(running)
    writer.write(f"POST /sandbox/{sandbox_id}/archive?target_dir={here} HTTP/1.1\r\nHost: localhost\r\n".encode())
    if framing == "length":
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + sent)
    else:
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(sent) + sent + b"\r\n")
    await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        while await shell(api, sandbox_id, "ls first || true") != "first\n":  # so that the second has begun
            pass
        writer.close()
        while 'code="499",route="/sandbox/{sandbox_id}/archive"' not in (await running.get("/metrics"))[1]:
            pass
        # The guest cleans up after the upload has been given up.
        wanted = "data\nfirst\n" if there else "first\n"
        while (found := await shell(api, sandbox_id, "ls -A")) != wanted:
            assert "data" not in found.split() or there
    if there:
        assert (await shell(api, sandbox_id, "cat data")).encode() == there


@pytest.mark.parametrize(
    ("version", "heads", "body"),
    [
        ("1.1", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
        ("1.0", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("1.1", "Content-Length: 0\r\nContent-Length: 5\r\n", "hello"),
    ],
)
async def test_a_body_whose_end_others_could_see_elsewhere_hides_no_second_request(
    running: Running, version: str, heads: str, body: str
):
    reader, writer = await opened(running)
    hidden = "GET /sandboxes HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /sandbox/create HTTP/{version}\r\nHost: localhost\r\nConnection: keep-alive\r\n{heads}\r\n"
    writer.write((head + body + hidden).encode())
    answer = await ends(reader)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
    writer.close()


async def shell(api: httpx.AsyncClient, sandbox_id: str, command: str) -> str:
    """Runs a command and returns what it printed."""
    body = {"sandbox_id": sandbox_id, "tool_name": "shell_executor", "parameters": {"command": command}}
    answer = await api.post("/sandbox/tool/execute", json=body)
    return str(answer.json()["output"])


def packed(**contents: bytes) -> bytes:
    """Packs an archive of files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


async def test_a_fault_of_ours_is_counted(running: Running, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    assert "enclaved_faults_total 0.0" in (await running.get("/metrics"))[1]
    monkeypatch.setattr(Files, "write_archive", broken)
    sandbox_id = (await api.post("/sandbox/create")).json()["sandbox_id"]
    answer = await api.post(f"/sandbox/{sandbox_id}/archive", content=b"x")
    assert (answer.status_code, "internal error" in answer.text) == (500, True)
    assert "enclaved_faults_total 1.0" in (await running.get("/metrics"))[1]


async def test_what_nobody_asks_the_server_to_be_is_not_there(running: Running):
    reader, writer = await opened(running)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
    answer = await ends(reader)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"server:" not in answer.lower()
    writer.close()


async def test_a_client_that_leaves_while_its_sandbox_is_made_gets_none(running: Running, api: httpx.AsyncClient):
    _, writer = await opened(running)
    writer.write(b"POST /sandbox/create HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    writer.close()
    async with asyncio.timeout(PATIENCE_S):
        while not (
            'enclaved_http_requests_total{code="499",route="/sandbox/create"} 1.0'
            in (text := (await running.get("/metrics"))[1])
            or 'enclaved_http_requests_total{code="200",route="/sandbox/create"} 1.0' in text
        ):
            pass
    found = (await api.get("/sandboxes")).json()
    assert len(found) == ('code="200",route="/sandbox/create"' in text)


async def test_a_call_whose_client_left_is_ended(running: Running, api: httpx.AsyncClient):
    created = await api.post("/sandbox/create", json={"tools_config": ["python_executor"]})
    parameters = {"code": "import time; time.sleep(3600)"}
    body = {"sandbox_id": created.json()["sandbox_id"], "tool_name": "python_executor", "parameters": parameters}
    data = json.dumps(body).encode()
    _, writer = await opened(running)
    head = b"POST /sandbox/tool/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    async with asyncio.timeout(PATIENCE_S):
        while "enclaved_executions_active 1.0" not in (await running.get("/metrics"))[1]:
            pass
        writer.close()
        while 'verdict="CANCELLED"' not in (await running.get("/metrics"))[1]:
            pass
