"""What a handle makes of what a guest says of an execution, and of what it does not say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from enclaved.agent import reader as reader_module
from enclaved.agent.guest.limits import STDERR, STDOUT
from enclaved.agent.handle import Handle, RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.errors import ExecutionNotFound, GuestUnavailable, SandboxLost

FINISHED: dict[str, Any] = {"type": "finished", "exit_code": 0}


class Connection:
    """Remembers what is sent."""

    sandbox_id = "box"

    def __init__(self) -> None:
        self.handles: dict[str, Handle] = {}
        self.sent: list[Mapping[str, Any]] = []

    connected = True
    congested = False

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends nothing."""
        self.sent.append(header)

    def kinds(self) -> list[str]:
        return [header["type"] for header in self.sent]


@pytest.fixture
def connection() -> Connection:
    """See `Connection`."""
    return Connection()


@pytest.fixture
async def handle(connection: Connection) -> Handle:
    """A handle of an execution that has not been sent yet."""
    made = Handle(connection, "x", WireJob(b"{}", None), RunOptions(timeout_s=1.0))
    connection.handles["x"] = made
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives guests next to no time."""
    monkeypatch.setattr(reader_module, "END_PATIENCE_S", 0.01)


def output(number: int, offset: int, data: bytes) -> tuple[str, dict[str, Any], bytes]:
    return "output", {"reader": number, "channel": STDOUT, "offset": offset, "time_s": 0.0}, data


@pytest.mark.usefixtures("impatient")
async def test_a_guest_that_says_finished_and_never_sends_the_rest_is_an_error(handle: Handle) -> None:
    reader = handle.start()
    handle.on_frame(*output(reader.number, 0, b"first"))
    handle.on_frame("finished", FINISHED, b"")
    chunk = await reader.next()
    assert chunk is not None
    assert chunk.data == b"first"
    for _ in range(2):
        with pytest.raises(GuestUnavailable, match="does not send the rest of the output"):
            await reader.next()


@pytest.mark.usefixtures("impatient")
async def test_who_waits_already_when_the_guest_says_finished_does_not_wait_for_ever(handle: Handle) -> None:
    reader = handle.start()
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    handle.on_frame("finished", FINISHED, b"")
    with pytest.raises(GuestUnavailable):
        await waiting


async def test_the_end_of_the_output_comes_after_the_rest_of_it(handle: Handle) -> None:
    reader = handle.start()
    handle.on_frame("finished", FINISHED, b"")
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    handle.on_frame(*output(reader.number, 0, b"rest"))
    handle.on_frame("end", {"reader": reader.number}, b"")
    chunk = await waiting
    assert chunk is not None
    assert chunk.data == b"rest"
    assert await reader.next() is None
    assert handle.readers == {}


@pytest.mark.usefixtures("impatient")
async def test_a_guest_that_does_not_answer_a_new_reader_is_an_error(handle: Handle) -> None:
    handle.start()
    reader = handle.subscribe()
    with pytest.raises(GuestUnavailable, match="try to attach again"):
        await reader.wait_subscribed()


async def test_a_released_execution_has_no_readers_here_and_in_the_guest(
    handle: Handle, connection: Connection
) -> None:
    first = handle.start()
    second = handle.subscribe()
    handle.on_frame("finished", FINISHED, b"")
    handle.release()
    assert connection.kinds() == ["run", "subscribe", "unsubscribe", "unsubscribe", "may_go"]
    assert (handle.readers, connection.handles) == ({}, {})
    with pytest.raises(ExecutionNotFound):
        await first.next()
    with pytest.raises(ExecutionNotFound):
        await second.wait_subscribed()
    late = handle.subscribe()
    with pytest.raises(ExecutionNotFound):
        await late.wait_subscribed()
    assert connection.kinds()[5:] == []


async def test_a_lost_execution_takes_no_readers(handle: Handle) -> None:
    reader = handle.start()
    handle.fail(SandboxLost("box", "it was stopped"))
    for _ in range(2):
        late = handle.subscribe({STDOUT: 1, STDERR: 0})
        with pytest.raises(SandboxLost):
            await late.wait_subscribed()
    with pytest.raises(SandboxLost):
        await reader.next()
    assert handle.readers == {}
