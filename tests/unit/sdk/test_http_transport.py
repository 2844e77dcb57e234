"""The transport over HTTP: the documented routes, typed errors, and what is tried again."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ms_enclave import errors
from ms_enclave._transports import http_calls
from ms_enclave._transports.base import SandboxPlan, ToolCall
from ms_enclave._transports.http import HttpTransport
from ms_enclave._transports.sessions import Sessions
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxStatus

from tests.unit.sdk.fake_server import FakeServer, refused, served


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with served(FakeServer()) as running:
        yield running


@pytest.fixture
async def transport(server: FakeServer) -> AsyncIterator[HttpTransport]:
    found = HttpTransport(server.url)
    yield found
    await found.close()


@pytest.fixture
async def box(transport: HttpTransport) -> str:
    return (await transport.create_sandbox(SandboxPlan("box", DockerSandboxConfig(), None))).id


def python(box: str, code: str) -> ToolCall:
    return ToolCall(box, "python_executor", {"code": code})


async def test_the_documented_routes_do_what_they_say(server: FakeServer, transport: HttpTransport) -> None:
    config = DockerSandboxConfig(memory_limit="1g", ports={"80/tcp": ("127.0.0.1", 8080)})
    made = await transport.create_sandbox(SandboxPlan("box", config, {"python_executor": {"timeout": 5}}))
    assert (made.id, made.status) == ("fake0", SandboxStatus.RUNNING)
    (body,) = server.asked("/sandbox/create")
    tools = {"python_executor": {"timeout": 5}}
    assert body == {"memory_limit": "1g", "ports": {"80/tcp": ["127.0.0.1", 8080]}, "tools_config": tools}
    assert server.requests[0][:2] == ("POST", "/sandbox/create?sandbox_type=docker&sandbox_id=box")
    assert [info.id for info in await transport.list_sandboxes({})] == ["fake0"]
    assert [(tool.name, tool.description) for tool in await transport.list_tools("fake0")] == [
        ("python_executor", "its python_executor")
    ]
    assert (await transport.run(python("fake0", "print(1)"))).output == "print(1)"
    assert (await transport.health()).version == "1.0.0"
    assert (await transport.stats())["total_sandboxes"] == 1
    assert (await transport.stop_sandbox("fake0")).status is SandboxStatus.STOPPED
    await transport.delete_sandbox("fake0")
    assert server.sandboxes == {}


async def test_a_pool_is_the_server_s(server: FakeServer, transport: HttpTransport) -> None:
    call = ToolCall("", "python_executor", {"code": "x"})
    with pytest.raises(errors.PoolNotFound, match="call initialize_pool first"):
        await transport.run_in_pool("mine", call)
    assert await transport.initialize_pool("mine", 2, SandboxPlan("", DockerSandboxConfig(), None)) == [
        "fake0",
        "fake1",
    ]
    assert (await transport.run_in_pool("mine", call, wait_timeout_s=2.5)).output == "x"
    assert server.requests[-1] == ("POST", "/pool/execute?tool_name=python_executor&timeout=2.5", {"code": "x"})
    server.answers["/pool/execute"].append(refused(408, "No sandbox was free within 2 seconds"))
    with pytest.raises(TimeoutError, match="No sandbox was free"):
        await transport.run_in_pool("mine", call)
    with pytest.raises(errors.NotServed, match="ends with the server"):
        await transport.delete_pool("mine")


async def test_a_file_goes_in_as_an_archive(server: FakeServer, transport: HttpTransport, box: str) -> None:
    data = os.urandom(3_000_000)

    async def content() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_001):
            yield data[start : start + 100_001]

    name = "ü" * 200
    assert await transport.write_file(box, f"d/e/{name}", content, mode=0o600) == len(data)
    assert await transport.write_file(box, "top", content) == len(data)
    assert server.files == {(box, f"d/e/{name}"): (data, 0o600), (box, "./top"): (data, 0o644)}
    for path in ("", "d/", "d/..", "a\0b"):
        with pytest.raises(ValueError, match="path"):
            await transport.write_file(box, path, content)


async def test_what_the_routes_cannot_do_is_said(transport: HttpTransport, box: str) -> None:
    for use in (
        anext(transport.stream(python(box, "1"))),
        anext(transport.read_file(box, "x")),
        transport.list_tools(),
        transport.list_sandboxes({"a": "b"}),
    ):
        with pytest.raises(errors.NotServed, match="HTTP routes"):
            await use
    assert (await transport.start_sandbox(box)).id == box
    await transport.stop_sandbox(box)
    with pytest.raises(errors.NotServed, match="cannot be started again over HTTP"):
        await transport.start_sandbox(box)


@pytest.mark.parametrize(
    ("status", "detail", "kind", "text"),
    [
        (400, "Failed to create sandbox: no", errors.InvalidRequest, "Failed to create sandbox: no"),
        (403, "not granted", errors.PolicyDenied, "not granted"),
        (404, "Tool x is not available", errors.ToolNotFound, "Tool x is not available"),
        (404, "Sandbox fake0 is not active (status: SandboxStatus.STOPPED)", errors.WrongState, "not active"),
        (404, "Sandbox not found", errors.SandboxNotFound, "Sandbox fake0 not found"),
        (429, "too many", errors.LimitReached, "too many"),
        (500, "log_id 1", errors.InternalError, "log_id 1"),
        (501, "later", errors.NotServed, "later"),
        (418, "teapot", errors.EnclaveError, "teapot"),
        (422, [{"loc": ["body", "tool_name"], "msg": "Field required"}], ValueError, "tool_name: Field required"),
        (422, ["odd"], errors.InvalidRequest, "{}"),
    ],
)
async def test_a_status_and_its_detail_become_an_error(
    server: FakeServer, transport: HttpTransport, box: str, status: int, detail: Any, kind: type[Exception], text: str
) -> None:
    server.answers["/sandbox/tool/execute"].append(refused(status, detail))
    with pytest.raises(kind, match=text) as caught:
        await transport.run(python(box, "1"))
    assert isinstance(caught.value, errors.EnclaveError)


async def test_a_server_of_ours_says_which_error_it_is(server: FakeServer, transport: HttpTransport, box: str) -> None:
    said = {
        "reason": "POLICY_DENIED",
        "metadata": {"rule": "memory"},
        "violations": [{"field": "spec.memory", "description": "too much", "reason": "LIMIT"}],
    }
    refusal = refused(400, "not granted", **{"X-Enclave-Error": json.dumps(said)})
    server.answers["/sandbox/tool/execute"].append(refusal)
    with pytest.raises(errors.PolicyDenied, match="not granted") as caught:
        await transport.run(python(box, "1"))
    assert caught.value.metadata == {"rule": "memory"}
    assert caught.value.violations == (errors.FieldViolation("spec.memory", "too much", "LIMIT"),)
    odd = [{"X-Enclave-Error": text} for text in ("{", "[]", '{"reason": "NEW", "violations": 1}')]
    server.answers["/sandbox/tool/execute"].extend(refused(404, "Tool x is not available", **one) for one in odd)
    for kind in (errors.ToolNotFound, errors.ToolNotFound, errors.NotFound):
        with pytest.raises(kind, match="Tool x is not available"):
            await transport.run(python(box, "1"))


async def test_a_key_goes_into_a_header_and_a_wrong_one_is_an_error(server: FakeServer) -> None:
    server.api_key = "secret"
    right, wrong = HttpTransport(server.url, api_key="secret"), HttpTransport(server.url)
    assert (await right.health()).healthy
    with pytest.raises(errors.Unauthenticated, match="Invalid or missing API key"):
        await wrong.health()
    await right.close()
    await wrong.close()


async def test_what_does_not_answer_at_the_moment_is_asked_again(
    server: FakeServer, transport: HttpTransport, box: str
) -> None:
    busy = {"Retry-After": "0.01"}
    server.answers["/sandbox/tool/execute"].append(refused(503, "the guest is not connected", **busy))
    assert (await transport.run(python(box, "x"))).output == "x"
    for _ in range(3):
        server.answers["/health"].append(refused(503, "stopping", **busy))
    with pytest.raises(errors.Unavailable, match="stopping"):
        await transport.health()


async def test_a_lost_answer_is_asked_for_again_only_if_that_is_safe(
    server: FakeServer, transport: HttpTransport, box: str
) -> None:
    server.answers["/health"].append(None)
    assert (await transport.health()).healthy
    server.answers["/sandbox/tool/execute"].append(None)
    with pytest.raises(errors.DaemonUnavailable, match="stopped answering"):
        await transport.run(python(box, "x"))
    assert len(server.asked("/sandbox/tool/execute")) == 1


async def test_a_delete_whose_answer_was_lost_has_succeeded(
    server: FakeServer, transport: HttpTransport, box: str
) -> None:
    server.answers[f"/sandbox/{box}"].extend([None, refused(404, "Sandbox not found")])
    await transport.delete_sandbox(box)
    with pytest.raises(errors.SandboxNotFound, match="Sandbox nope not found"):
        await transport.delete_sandbox("nope")


async def test_cancelling_the_caller_ends_the_request(server: FakeServer, transport: HttpTransport, box: str) -> None:
    task = asyncio.create_task(transport.run(python(box, "for ever")))
    assert await asyncio.to_thread(server.running.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.left.wait, 20)


async def test_an_answer_that_takes_too_long_is_an_error(
    server: FakeServer, transport: HttpTransport, box: str
) -> None:
    request = http_calls.Request(
        "POST",
        "/sandbox/tool/execute",
        None,
        f'{{"sandbox_id":"{box}","tool_name":"python_executor","parameters":{{"code":"for ever"}}}}',
    )
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.05 seconds"):
        await transport._calls.call(request, timeout_s=0.05)


def test_a_transport_may_be_used_from_many_event_loops(server: FakeServer) -> None:
    transport = HttpTransport(server.url + "/")
    assert [asyncio.run(transport.health()).version for _ in range(3)] == ["1.0.0"] * 3
    assert all(entry.session.closed for entry in transport._calls._sessions._entries.values())


def test_a_loop_that_was_closed_without_ado_is_forgotten(server: FakeServer) -> None:
    transport = HttpTransport(server.url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(transport.health())
    loop.run_until_complete(transport.close())
    loop.close()
    assert asyncio.run(transport.health()).healthy


def test_a_forked_child_leaves_the_connections_of_its_parent_alone() -> None:
    sessions = Sessions()
    entry: Any = object()
    sessions._entries[1] = entry
    sessions.forget()
    assert (sessions._entries, sessions._inherited) == ({}, [entry])


async def test_a_socket_may_be_named_instead_of_a_host(tmp_path: Path) -> None:
    with served(FakeServer(), tmp_path / "s") as server:
        transport = HttpTransport(server.url)
        assert (await transport.health()).healthy
        await transport.close()


async def test_nobody_at_the_address_is_said_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        transport = HttpTransport(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"no server answers at http://127.*start one with") as caught:
            await transport.health()
        assert isinstance(caught.value, errors.DaemonUnavailable)
        with pytest.raises(errors.DaemonUnavailable):
            await transport.health(timeout_s=1)
        await transport.close()


async def test_a_plain_server_is_not_taken_for_one_with_tls(server: FakeServer) -> None:
    transport = HttpTransport(server.url.replace("http:", "https:"))
    with pytest.raises(errors.DaemonUnavailable, match="correct base_url"):
        await transport.health()
    await transport.close()


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>welcome</html>", status=404),
        web.json_response({"detail": "Not Found"}, status=404),
        web.Response(status=301, headers={"Location": "http://elsewhere/"}),
        web.Response(text="bad gateway", status=502),
    ],
    ids=["html", "another-api", "redirect", "proxy"],
)
async def test_what_is_no_such_server_is_said(
    server: FakeServer, transport: HttpTransport, answer: web.Response
) -> None:
    server.answers["/health"].extend([answer])
    with pytest.raises(errors.DaemonUnavailable, match=r"no ms-enclave server|no daemon answers behind"):
        await transport.health(timeout_s=5)


async def test_answers_of_another_shape_are_a_fault_of_the_server(server: FakeServer, transport: HttpTransport) -> None:
    for path, use in (
        ("/health", transport.health),
        ("/stats", transport.stats),
        ("/sandboxes", lambda: transport.list_sandboxes({})),
        ("/sandbox/x/tools", lambda: transport.list_tools("x")),
    ):
        server.answers[path].extend([web.json_response(17), web.Response(text="{")])
        for _ in range(2):
            with pytest.raises(errors.InternalError, match="answered"):
                await use()


@pytest.mark.parametrize("port", ["grpc", "garbage"])
async def test_another_protocol_at_the_port_is_said(port: str) -> None:
    answer = b"\0\0\x12\4\0\0\0\0\0" if port == "grpc" else b"220 mail.example ESMTP\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    other = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with other:
        transport = HttpTransport(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}")
        with pytest.raises(errors.DaemonUnavailable, match="start one with"):
            await transport.health(timeout_s=10)
        await transport.close()


@pytest.mark.parametrize("url", ["http://h:1/", "http://h:1", "https://h/prefix", "unix:/x"])
def test_an_address_is_a_url_or_a_socket(url: str) -> None:
    socket_path, root = http_calls.parse_base_url(url)
    assert (socket_path is not None) == url.startswith("unix:")
    assert not root.endswith("/")


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://u:p@h", "http://h?a=b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="base_url"):
        HttpTransport(url)


@pytest.mark.parametrize("key", ["a b", "ä", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="api_key"):
        HttpTransport("http://h", api_key=key)
