"""The doctor's own look at an engine: what does not answer as an engine does is named, and nothing waits for ever."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclaved.doctor.engine import EngineSilent, EngineView


@contextmanager
def engine_that_says(*answers: bytes) -> Iterator[EngineView]:
    """Serves these answers, one for each connection, whatever is asked."""
    directory = Path(tempfile.mkdtemp(prefix="mse-", dir="/tmp"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/e.sock")
        listener.listen()

        def serve() -> None:
            for answer in answers:
                with listener.accept()[0] as peer:
                    peer.recv(65536)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield EngineView(f"unix://{directory}/e.sock", answer_s=5)
        finally:
            thread.join(10)
            shutil.rmtree(directory)


def ok(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", ok([1]), ok("x"), ok({})[:-2] + b"{"],
)
def test_what_is_no_answer_of_an_engine_is_named(answer: bytes) -> None:
    with engine_that_says(answer) as engine, pytest.raises(EngineSilent, match=r"the engine at unix://"):
        engine.info()


def test_a_container_is_found_by_the_label_of_its_sandbox() -> None:
    container = {"Id": "a" * 64, "State": {"Pid": 7}}
    with engine_that_says(ok([{"Id": "a" * 64}]), ok(container)) as engine:
        assert engine.container_of("x") == container


@pytest.mark.parametrize("listed", [[], [{"Id": "../../info"}], [{"Id": "A" * 64}], [{}], ["x"]])
def test_an_id_that_is_none_is_not_asked_for(listed: list[object]) -> None:
    with engine_that_says(ok(listed)) as engine:
        assert engine.container_of("x") is None


def test_a_container_that_goes_in_between_is_none() -> None:
    gone = b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n"
    with engine_that_says(ok([{"Id": "a" * 64}]), gone) as engine:
        assert engine.container_of("x") is None


@pytest.mark.parametrize("url", ["tcp://", "ftp://x:1", "tcp://x:port", "nonsense"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(EngineSilent, match="no address of an engine"):
        EngineView(url).info()
