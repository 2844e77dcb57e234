"""Our own standard streams as bytes, beside an event loop that goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave._cli import streams

DATA = bytes(range(256)) * 2000


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """The ends of a pipe: reader, writer."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        if streams.is_open(end):
            os.close(end)


async def all_of(fd: int) -> bytes:
    return b"".join([piece async for piece in streams.read(fd)])


async def test_a_pipe_carries_more_than_it_holds_while_both_ends_wait(pipe: list[int]) -> None:
    reader, writer = pipe
    reading = asyncio.create_task(all_of(reader))
    await streams.write(writer, DATA)
    os.close(writer)
    assert await reading == DATA


async def test_files_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        await streams.write(file.fileno(), DATA)
    with path.open("rb") as file:
        assert await all_of(file.fileno()) == DATA
    nothing = os.open(os.devnull, os.O_RDONLY)
    assert await all_of(nothing) == b""
    os.close(nothing)


async def test_a_writer_that_waits_can_be_cancelled(pipe: list[int]) -> None:
    writing = asyncio.create_task(streams.write(pipe[1], DATA))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_a_writer_learns_that_nobody_reads(pipe: list[int]) -> None:
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        await streams.write(pipe[1], b"x")


def test_a_closed_stream_is_no_terminal(pipe: list[int]) -> None:
    os.close(pipe[0])
    assert not streams.is_open(pipe[0])
    assert not streams.is_terminal(pipe[0])
    assert not streams.is_terminal(pipe[1])
