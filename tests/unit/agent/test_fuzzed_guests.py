"""A guest that says nonsense: the daemon drops its connection, holds no more than it should, and takes the next one."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclaved.agent import peer as peer_module
from enclaved.agent.guest.frames import encode_frame
from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.guest.limits import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, PROTOCOL_VERSION
from enclaved.agent.handle import RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.link import HELD_MOST, GuestLink
from enclaved.agent.peer import SocketPeer
from enclaved.agent.reader import CREDIT_BYTES
from enclaved.core.verdicts import Evidence, conclude
from enclaved.model import Output, TerminalSize
from tests.cases import cases
from tests.mutations import Frame, mutated, pieces

JOB = WireJob(b'{"kind":"command"}', None)
MOST_BYTES = 6 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
HELLO: Frame = ({"type": "hello", "version": PROTOCOL_VERSION, "sandbox": "box", "python": "3.11.2"}, b"")
READY: Frame = ({"type": "ready"}, b"")
USAGE = {"cpu_user_s": 0.5, "cpu_system_s": 0.25, "memory_peak_bytes": 2**20, "io_read_bytes": 5, "pids": 2}


class Wire:
    """The transport of a connection, which forgets what is written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.peer: SocketPeer | None = None
        self.closed = False

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self._sock

    def write(self, data: bytes) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.peer is not None
            self.peer.connection_lost(None)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def connected(link: GuestLink, sock: socket.socket) -> tuple[SocketPeer, Wire]:
    wire = Wire(sock)
    wire.peer = SocketPeer(link)
    wire.peer.connection_made(wire)  # type: ignore[arg-type]
    return wire.peer, wire


def conversation(chance: random.Random) -> list[Frame]:
    """What a guest may well say, once it has been let in, of the executions that it was given."""
    name, reader, channel = chance.choice((("a:1", 1, 1), ("a:1", 1, 2), ("b:2", 1, 3)))
    told: dict[str, Any] = {"execution": name}
    said: list[Frame] = []
    offset = 0
    for _ in range(chance.randrange(1, 8)):
        data = chance.randbytes(chance.choice((1, 20, 3000, 60_000)))
        output = {"type": "output", **told, "reader": reader, "channel": channel, "offset": offset, "time_s": 0.5}
        offset += len(data)
        said.append((output, data))
        said.append(
            chance.choice(
                (
                    ({"type": "stdin_taken", **told, "offset": 0}, b""),
                    ({"type": "awaiting_input", **told, "waiting": chance.random() < 0.7}, b""),
                    ({"type": "full", **told, "offsets": {"1": offset, "2": 0, "3": offset}}, b""),
                    ({"type": "sampled", **told, "number": reader, "usage": USAGE, "time_s": 1.5}, b""),
                    ({"type": "pong", "number": 1}, b""),
                    ({"type": "parked", "number": 1, "killed": 3}, b""),
                    ({"type": "context", "number": 1, "name": "c", "calls": 1, "alive": True, "age_s": 1.0}, b""),
                    ({"type": "holds", "execution": "c:3", "state": "running", "stdin_offset": 3}, b""),
                    ({"type": "unknown", **told, "reader": reader}, b""),
                    ({"type": "released", **told, "reader": 2, "channel": 1, "offset": 1, "first_offset": 9}, b""),
                    ({"type": "subscribed", **told, "reader": 2, "offsets": {"1": 0, "2": 0, "3": 0}}, b""),
                    ({"type": "refused", "execution": "b:2", "code": "full", "message": "too many"}, b""),
                )
            )
        )
    report = {
        "exit_code": chance.choice((0, 1, 137)),
        "attested": True,
        "cause": chance.choice((None, "timeout", "cancel")),
        "exception": {"type": "ValueError", "message": "no", "errno": None},
        "state_preserved": None,
        "usage": USAGE,
        "bytes_total": {str(channel): offset},
        "phases": {"queued_s": 0.1, "starting_s": 0.1, "running_s": 0.1, "draining_s": 0.1},
        "signalled": [15],
        "disks_full": 0,
    }
    return [*said, ({"type": "finished", **told, **report}, b""), ({"type": "end", **told, "reader": reader}, b"")]


async def test_no_conversation_harms_the_daemon(
    sock: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module.log, "disabled", True)  # it tells of every guest that is dropped
    for seed in range(cases(3000)):
        try:
            await survive(random.Random(seed), sock, tmp_path)
        except Exception as error:
            raise AssertionError(f"with seed {seed}") from error


async def survive(chance: random.Random, sock: socket.socket, directory: Path) -> None:
    """Has a guest say what it should not, and looks at what that does."""
    link = GuestLink("box", directory, group_id=0, guest_uids={os.getuid()})
    peer, wire = connected(link, sock)
    for frame in (HELLO, ({"type": "holds", "execution": "c:3", "state": "running"}, b""), READY):
        peer.data_received(encode_frame(*frame))
    first, _ = link.start("a:1", JOB, RunOptions(5.0, stdin=True))
    second, _ = link.start("b:2", JOB, RunOptions(5.0, terminal=TerminalSize(24, 80)))
    adopted = link.adopt("c:3", RunOptions(5.0))
    first.subscribe({1: 0, 2: 0})
    handles = [first, second, adopted]
    readers = [reader for handle in handles for reader in handle.readers.values()]
    talk = conversation(chance)
    if chance.random() < 0.2:
        talk = [HELLO, READY, *talk]
    for piece in pieces(mutated(talk, chance), chance):
        if wire.closed:
            break
        peer.data_received(piece)
        for reader in readers:
            chunks = [item for item in reader._items if isinstance(item, Output)]
            assert sum(cost_bytes(chunk.data) for chunk in chunks) <= CREDIT_BYTES + cost_bytes(
                bytes(MAX_PAYLOAD_BYTES)
            )
            assert len(reader._items) <= 2 * len(chunks) + 1
            assert all(0 <= offset < 2**63 for offset in reader.offsets.values()), "no number of the contract"
            while chance.random() < 0.5 and reader._items:
                await reader.next()
    assert wire.closed or len(peer._decoder._buffer) < MOST_BYTES
    assert len(link._held) <= HELD_MOST
    for handle in handles:
        if handle.finished.done() and handle.finished.exception() is None:
            conclude(handle.finished.result(), Evidence(timeout_s=5.0))
    if wire.closed:
        assert not link.connected
        again, other = connected(link, sock)
        for frame in (HELLO, READY):
            again.data_received(encode_frame(*frame))
        assert link.connected
        assert not other.closed
