"""The server: what it starts, what it forwards, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ms_enclave import _embedded as embedded
from ms_enclave._embedded import EmbeddedDaemon, HttpListener
from ms_enclave.errors import DaemonStartFailed, DaemonUnavailable, InvalidRequest, NotServed
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxManagerConfig
from ms_enclave.sandbox.server import SandboxServer, create_server
from ms_enclave.sandbox.server import _app as forwarding
from ms_enclave.sandbox.server import server as server_module

from tests.unit.sdk import test_embedded
from tests.unit.sdk.fake_server import FakeServer, served
from tests.unit.sdk.test_embedded import ROOT, script

CHILD = """
import argparse, asyncio, os, sys
from pathlib import Path
from tests.unit.sdk.fake_daemon import FakeDaemon, serve
from tests.unit.sdk.fake_server import FakeServer, served
parser = argparse.ArgumentParser()
parser.add_argument("--listen-unix", type=Path)
parser.add_argument("--listen-http")
parser.add_argument("--embedded-parent-fd", type=int)
given, _ = parser.parse_known_args()
async def main():
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(given.embedded_parent_fd, gone.set)
    where, _, port = given.listen_http.rpartition(":")
    unix = Path(port) if where == "unix" else None
    with served(FakeServer(), unix, 0 if unix else int(port)):
        server = await serve(FakeDaemon(), given.listen_unix)
        await gone.wait()
        await server.stop(0)
asyncio.run(main())
"""
"""A daemon that serves the fakes of both APIs until its parent goes."""


def fake(directory: Path, parent_fd: int) -> list[str]:
    return [
        *script(CHILD),
        *("--listen-unix", str(directory / "enclaved.sock"), "--embedded-parent-fd", str(parent_fd)),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def children(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Embedded daemons are fakes, in a short directory."""
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'sdk_python'}")
    monkeypatch.setattr(embedded, "_DIRECTORY_BYTES_MAX", 90)
    monkeypatch.setattr(embedded, "_command", fake)
    monkeypatch.setattr(forwarding, "SYSTEM_HTTP_SOCKET", path / "no-system")
    return path


@pytest.fixture
def backend() -> Iterator[FakeServer]:
    with served(FakeServer()) as running:
        yield running


class Client:
    """Speaks ASGI to an application, as a web server does."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self.app = app
        self.scope = {"type": "http", "root_path": "", "query_string": b"", "headers": [], **scope}
        self.sent: list[dict[str, Any]] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def ask(self, method: str, path: str, *pieces: bytes, query: bytes = b"", **headers: str) -> tuple[int, Any]:
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if pieces:
            given.append((b"transfer-encoding", b"chunked"))
        for piece in pieces:
            self.incoming.put_nowait({"type": "http.request", "body": piece, "more_body": True})
        self.incoming.put_nowait({"type": "http.request", "body": b""})
        scope = {**self.scope, "method": method, "path": path, "query_string": query, "headers": given}
        await self.app(scope, self.incoming.get, self.send)
        return self.sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in self.sent[1:]))

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@contextlib.asynccontextmanager
async def living(app: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """Follows the lifespan protocol of an application."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: list[dict[str, Any]] = []
    answered = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        answered.set()

    task = asyncio.create_task(app({"type": "lifespan"}, incoming.get, send))
    incoming.put_nowait({"type": "lifespan.startup"})
    await answered.wait()
    yield sent
    incoming.put_nowait({"type": "lifespan.shutdown"})
    await task


async def test_the_application_forwards_requests_as_they_are(backend: FakeServer) -> None:
    app = create_server(SandboxManagerConfig(base_url=backend.url)).app
    async with living(app):
        assert (await Client(app).ask("GET", "/health"))[0] == 200
        body = json.dumps({"tools_config": ["python_executor"]}).encode()
        status, made = await Client(app).ask(
            *("POST", "/sandbox/create", body[:5], body[5:]),
            query=b"sandbox_type=docker",
            content_type="application/json",
        )
        assert (status, made) == (200, {"sandbox_id": "fake0"})
        assert backend.requests[-1] == ("POST", "/sandbox/create?sandbox_type=docker", json.loads(body))
        assert (await Client(app).ask("DELETE", "/sandbox/fake0"))[0] == 200
        assert await Client(app).ask("GET", "/sandbox/a%2Fb") == (404, {"detail": "Sandbox not found"})
        mounted = Client(app, root_path="/api")
        assert (await mounted.ask("GET", "/api/stats"))[0] == 200


async def test_keys_are_the_daemon_s_to_check(backend: FakeServer) -> None:
    backend.api_key = "secret"
    app = create_server(SandboxManagerConfig(base_url=backend.url)).app
    async with living(app):
        assert (await Client(app).ask("GET", "/health"))[0] == 401
        assert (await Client(app).ask("GET", "/health", X_API_Key="secret"))[0] == 200


async def test_a_client_that_leaves_ends_what_runs_for_it(backend: FakeServer) -> None:
    app = create_server(SandboxManagerConfig(base_url=backend.url)).app
    async with living(app):
        await Client(app).ask("POST", "/sandbox/create", b'{"tools_config": null}', content_type="application/json")
        client = Client(app)
        body = {"sandbox_id": "fake0", "tool_name": "python_executor", "parameters": {"code": "for ever"}}
        asking = asyncio.create_task(
            client.ask("POST", "/sandbox/tool/execute", json.dumps(body).encode(), content_type="application/json")
        )
        assert await asyncio.to_thread(backend.running.wait, 20)
        client.incoming.put_nowait({"type": "http.disconnect"})
        with pytest.raises(IndexError):  # nothing was answered
            await asking
        assert await asyncio.to_thread(backend.left.wait, 20)


async def test_a_client_that_leaves_amid_its_upload_ends_the_request(backend: FakeServer) -> None:
    app = create_server(SandboxManagerConfig(base_url=backend.url)).app
    async with living(app):
        client = Client(app)
        client.incoming.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
        client.incoming.put_nowait({"type": "http.disconnect"})
        scope = {**client.scope, "method": "POST", "path": "/sandbox/x/archive"}
        await app({**scope, "headers": [(b"content-length", b"9")]}, client.incoming.get, client.send)
        assert backend.sandboxes == {}


async def test_a_daemon_that_does_not_answer_is_a_503() -> None:
    app = create_server(SandboxManagerConfig(base_url=f"http://127.0.0.1:{free_port()}")).app
    status, body = await Client(app).ask("GET", "/health")
    assert status == 503
    assert "does not answer" in body["detail"]
    async with living(app):
        pass


async def test_a_daemon_of_its_own_is_started_with_the_first_request_and_ends_with_the_web_server(
    children: Path,
) -> None:
    config = SandboxManagerConfig(sandbox_config=DockerSandboxConfig(tools_config={"python_executor": {}}))
    app = create_server(config, pool_size=2).app
    async with living(app):
        _, stats = await Client(app).ask("GET", "/stats")
        assert stats["pool_size"] == 2
        assert len(list((children / "ms-enclave").iterdir())) == 1
    assert not (children / "ms-enclave").exists()


async def test_a_daemon_that_cannot_start_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", lambda directory, fd: script("raise SystemExit('no engine')"))
    app = create_server().app
    async with contextlib.AsyncExitStack() as stack:
        sent = await stack.enter_async_context(living(app))
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "no engine" in sent[0]["message"]


async def test_the_system_s_daemon_is_used_if_it_serves_http(
    children: Path, backend: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(FakeServer(), children / "no-system") as system:
        app = create_server().app
        async with living(app):
            await Client(app).ask("GET", "/health")
        assert system.asked("/health")
    assert not (children / "ms-enclave").exists()


async def test_a_web_socket_is_closed() -> None:
    client = Client(create_server().app, type="websocket")
    await client.app(client.scope, client.incoming.get, client.send)
    assert client.sent == [{"type": "websocket.close", "code": 1008}]


def test_arguments_and_configuration_come_together() -> None:
    server = create_server(SandboxManagerConfig(api_key="a", pool_size=3, cleanup_interval=5))
    assert (server.config.api_key, server.config.pool_size, server.config.cleanup_interval) == ("a", 3, 5)
    server = create_server({"api_key": "a"}, api_key="b", pool_size=1)
    assert (server.config.api_key, server.config.pool_size, server.config.cleanup_interval) == ("b", 1, 300)
    assert server.app is server.app
    with pytest.raises(ValueError, match="pool"):
        create_server({"pool": 1})


def test_of_a_key_only_the_digest_leaves_the_process(tmp_path: Path) -> None:
    listener = HttpListener("127.0.0.1:8000", api_key="a,b")
    assert listener.arguments(tmp_path) == ["--listen-http", "127.0.0.1:8000"]
    digest = hashlib.sha256(b"a,b").hexdigest()
    assert listener.environment()["ENCLAVED_HTTP_API_KEYS"] == f"sha256:{digest}"
    assert HttpListener().arguments(tmp_path) == ["--listen-http", f"unix:{tmp_path}/http.sock"]


def test_the_process_s_own_daemon_and_that_of_a_server_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", test_embedded.fake)
    own, http = EmbeddedDaemon(), EmbeddedDaemon(HttpListener())
    try:
        assert own.ensure() != http.ensure()
        assert own.http_url is None
        assert (http.http_url or "").startswith("unix:")
    finally:
        own.stop()
        http.stop()
    assert http.http_url is None
    assert http.wait() is None


@pytest.mark.parametrize(
    ("given", "level"),
    [({}, "warning"), ({"log_level": "INFO"}, "info"), ({"log_level": "trace"}, "debug"), ({"workers": 4}, "warning")],
)
def test_of_the_arguments_of_run_the_log_level_counts(given: dict[str, Any], level: str) -> None:
    assert server_module._log_level(given) == level


@pytest.mark.parametrize("name", ["ssl_ca_certs", "uds", "fd"])
def test_arguments_that_say_who_may_connect_are_refused(name: str) -> None:
    with pytest.raises(NotServed, match=rf"run\({name}"):
        create_server().run(**{name: "x"})


@pytest.mark.parametrize(
    ("host", "reachable"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("localhost", "localhost")],
)
def test_a_server_reaches_itself(host: str, reachable: str) -> None:
    assert server_module._reachable(host) == reachable


def test_a_server_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", lambda directory, fd: script("raise SystemExit(3)"))
    with pytest.raises(DaemonStartFailed, match=r"cannot serve http://127.*code 3; it says why above$"):
        create_server().run(port=free_port())
    with pytest.raises(
        DaemonStartFailed, match=r"needs an api_key and ssl_certfile with ssl_keyfile \(or behind_proxy\)$"
    ):
        create_server().run("0.0.0.0", free_port())
    with pytest.raises(DaemonStartFailed, match=r"needs an api_key$"):
        create_server().run("0.0.0.0", free_port(), behind_proxy=True)
    with pytest.raises(InvalidRequest, match="go together"):
        create_server().run(port=free_port(), ssl_certfile="tls.crt")
    with pytest.raises(DaemonStartFailed, match=r"above$"):
        create_server(api_key="key").run("localhost", free_port())


def test_a_daemon_that_dies_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = create_server()
    monkeypatch.setattr(SandboxServer, "_started", lambda self, *given: None)
    monkeypatch.setattr(EmbeddedDaemon, "wait", lambda self: 137)
    with pytest.raises(DaemonUnavailable, match="ended with code 137"):
        server.run(port=free_port())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly(children: Path, number: signal.Signals) -> None:
    """1. A program runs a server with a pool. 2. A request is answered. 3. The signal. 4. Exit code 0, nothing left."""
    port = free_port()
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "sdk_python")!r}]
from ms_enclave import _embedded
from tests.unit.sdk.test_server import fake
_embedded._DIRECTORY_BYTES_MAX = 90
_embedded._command = fake
from ms_enclave.sandbox import create_server
create_server(cleanup_interval=300, pool_size=1).run(host="127.0.0.1", port={port})
print("over")
"""
    with subprocess.Popen(script(program), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"ms-enclave serves http://127.0.0.1:{port} (Ctrl-C stops it)\n"
        assert asyncio.run(_stats(port)) is not None
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "over\n", "")
    assert not (children / "ms-enclave").exists()


async def _stats(port: int) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/stats") as answer:
        return await answer.json()


def test_a_server_may_run_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are the main thread's; the end of the daemon ends the server there."""
    monkeypatch.setattr(EmbeddedDaemon, "wait", lambda self: 0)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            create_server().run(port=free_port())
        except DaemonUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert len(failures) == 1


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "ms_enclave.run_server"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for wanted in ("--host", "--port", "MS_ENCLAVE_API_KEY", "Examples:"):
        assert wanted in done.stdout
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
