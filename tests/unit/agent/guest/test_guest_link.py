"""The guest's connection: what a daemon said before it was killed is not lost with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.link import Link
from enclaved.agent.guest.loop import Loop


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


def test_what_a_daemon_said_before_its_end_is_heard_also_where_sending_fails_first(listener: socket.socket) -> None:
    heard: list[dict[str, Any]] = []
    lost: list[bool] = []
    link = Link(Loop(), listener.getsockname(), 0.0)
    link.on_connected = lambda: None
    link.on_frame = lambda header, payload: heard.append({**header, "payload": payload})
    link.on_lost = lambda: lost.append(True)
    link.connect()
    daemon, _ = listener.accept()
    for number in range(5):
        daemon.sendall(encode_frame({"type": "run", "number": number}, b"x" * 20_000))
    daemon.close()
    link.send({"type": "output"}, b"nobody reads this")
    link.flush()
    assert [frame["number"] for frame in heard] == [0, 1, 2, 3, 4]
    assert {frame["payload"] for frame in heard} == {b"x" * 20_000}
    assert (link.daemon, lost) == (None, [True])
