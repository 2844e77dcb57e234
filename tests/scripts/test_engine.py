"""The scripts' client for the engine, against a server that answers as an engine does."""

from __future__ import annotations

import io
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.loading import load

engine_module = load("_engine")


class Handler(BaseHTTPRequestHandler):
    """Answers what the test put into ``server.answers``, and keeps what was asked."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.asked.append((self.command, self.path, body))  # type: ignore[attr-defined]
        status, answer = self.server.answers.pop(0)  # type: ignore[attr-defined]
        lines = answer if isinstance(answer, list) else [answer]
        content = "\n".join(json.dumps(line) for line in lines).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (http.server's name)
        pass

    def address_string(self) -> str:
        return "socket"


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, bytes]] = []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path / "docker.sock") as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


@pytest.fixture
def engine(server: FakeEngine) -> Any:
    return engine_module.Engine(f"unix://{server.server_address}")


def test_the_engine_is_where_docker_host_says_else_at_the_usual_socket() -> None:
    assert engine_module.Engine.from_environment({"DOCKER_HOST": "tcp://h:1"}).host == "tcp://h:1"
    assert engine_module.Engine.from_environment({}).host == "unix:///var/run/docker.sock"


def test_an_engine_that_is_there_says_its_version(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, {"Version": "20.10.24", "Arch": "amd64"})]
    assert engine.version()["Version"] == "20.10.24"


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9"])
def test_an_engine_that_is_not_there_is_named(host: str) -> None:
    with pytest.raises(engine_module.EngineError, match=f"no Docker engine answers at {host}"):
        engine_module.Engine(host).version()


@pytest.mark.parametrize("host", ["ssh://user@host", "npipe:////./pipe/docker", "nonsense", "tcp://"])
def test_an_address_that_cannot_work_here_is_refused(host: str) -> None:
    with pytest.raises(engine_module.EngineError, match="only unix://, tcp:// and https://"):
        engine_module.Engine(host).version()


def test_missing_permission_is_told_apart_from_a_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine_module._UnixConnection, "connect", refuse)
    with pytest.raises(engine_module.NoPermission, match="run as root, or join its group"):
        engine_module.Engine("unix:///var/run/docker.sock").version()


def test_an_image_that_is_not_there_is_none(engine: Any, server: FakeEngine) -> None:
    server.answers = [(404, {"message": "No such image"})]
    assert engine.image("ms-enclave/python:3.11") is None
    assert server.asked[0][1] == "/images/ms-enclave/python%3A3.11/json"


def test_other_answers_of_the_engine_are_errors_in_its_words(engine: Any, server: FakeEngine) -> None:
    server.answers = [(500, {"message": "no space left on device"})]
    with pytest.raises(engine_module.EngineError, match="answered 500: no space left on device"):
        engine.image("x")


def test_an_import_sends_the_whole_archive_and_says_how_far_it_is(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, {"status": "sha256:1234"})]
    archive = b"x" * (engine_module.CHUNK_BYTES + 5)
    sent: list[int] = []
    engine.import_image("a/b:1", io.BytesIO(archive), changes=["ENV A=1", "LABEL k=v"], sent=sent.append)
    _, path, body = server.asked[0]
    assert body == archive
    assert sent == [engine_module.CHUNK_BYTES, len(archive)]
    assert path == "/images/create?fromSrc=-&repo=a%2Fb&tag=1&changes=ENV+A%3D1&changes=LABEL+k%3Dv"


def test_an_import_that_the_engine_refuses_is_an_error(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, [{"status": "reading"}, {"error": "unexpected EOF"}])]
    with pytest.raises(engine_module.EngineError, match="unexpected EOF"):
        engine.import_image("a:1", io.BytesIO(b"x"), changes=[], sent=lambda count: None)


def test_a_pull_adds_up_the_layers(engine: Any, server: FakeEngine) -> None:
    server.answers = [
        (
            200,
            [
                {"status": "Pulling from library/python", "id": "3.11-slim"},
                {"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 100}},
                {"status": "Downloading", "id": "b", "progressDetail": {"current": 5, "total": 50}},
                {"status": "Downloading", "id": "a", "progressDetail": {"current": 60, "total": 100}},
                {"status": "Pull complete", "id": "a", "progressDetail": {}},
            ],
        )
    ]
    heard: list[Any] = []
    engine.pull("python:3.11-slim", heard=heard.append, first_answer_s=5, silence_s=5)
    progress = [(state.done_bytes, state.known_bytes) for state in heard]
    assert progress == [(0, 0), (10, 100), (15, 150), (65, 150), (65, 150)]


@pytest.mark.parametrize("answer", [(404, {"message": "not found"}), (200, {"error": "no such host"})])
def test_a_pull_that_fails_is_an_error(engine: Any, server: FakeEngine, answer: tuple[int, Any]) -> None:
    server.answers = [answer]
    with pytest.raises(engine_module.EngineError, match=r"not found|no such host"):
        engine.pull("python:3.11-slim", heard=lambda state: None, first_answer_s=5, silence_s=5)


def test_an_image_in_use_is_left_alone(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, {"RepoTags": []}), (409, {"message": "image is being used"})]
    engine.remove_unused_image("sha256:1")
    assert [method for method, _, _ in server.asked] == ["GET", "DELETE"]


def test_an_image_with_another_name_is_left_alone(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, {"RepoTags": ["mine:1"]})]
    engine.remove_unused_image("sha256:1")
    assert [method for method, _, _ in server.asked] == ["GET"]


def test_containers_are_found_by_label_with_what_they_mount(engine: Any, server: FakeEngine) -> None:
    server.answers = [(200, [[{"Id": "c1", "Mounts": [{"Source": "/run/x"}]}, {"Id": "c2", "Mounts": None}]])]
    found = engine.containers("enclaved.id")
    assert [(container.id, container.mounts) for container in found] == [("c1", ("/run/x",)), ("c2", ())]
    assert "all=true" in server.asked[0][1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("python:3.11-slim", ("python", "3.11-slim")),
        ("ms-enclave/python:3.11", ("ms-enclave/python", "3.11")),
        ("python", ("python", "latest")),
        ("localhost:5000/python", ("localhost:5000/python", "latest")),
        ("localhost:5000/python:1", ("localhost:5000/python", "1")),
    ],
)
def test_a_name_is_split_at_its_tag(name: str, parts: tuple[str, str]) -> None:
    assert engine_module.split_name(name) == parts
