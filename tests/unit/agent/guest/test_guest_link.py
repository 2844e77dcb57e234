"""The guest's connection: what a daemon said before it was killed is not lost with it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent.guest.execution import Execution
from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.limits import RECORD_KEPT_S
from enclaved.agent.guest.link import Link
from enclaved.agent.guest.loop import Loop
from enclaved.agent.guest.records import Records


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


def test_records_do_not_grow_old_while_there_is_no_daemon(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    loop = Loop()
    link = Link(loop, listener.getsockname(), 0.0)
    link.on_connected = link.on_lost = lambda: None
    records = Records(loop, link)
    forgotten: list[Execution] = []
    records.on_forgotten = forgotten.append
    link.connect()
    link.disconnect()
    execution = Execution("run", {"execution": "run", "context": None, "timeout_s": 1, "job_bytes": 0})
    execution.enter("ended")
    records.by_name["run"] = execution
    records.add(execution)
    now[0] += 10 * RECORD_KEPT_S
    records.expire()
    assert forgotten == []
    link.connect()
    now[0] += RECORD_KEPT_S - 1
    records.expire()
    assert forgotten == []
    now[0] += 2
    records.expire()
    assert forgotten == [execution]
    link.disconnect()
