"""The events of one execution for one follower: what the guest sends and what the daemon adds, in one order."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.handle import Handle
from enclaved.agent.reader import OutputReader
from enclaved.core import answer_room
from enclaved.core.possible import Bounds
from enclaved.errors import EnclaveError, ExecutionNotFound, SandboxLost
from enclaved.model import (
    CHANNEL_NAMES,
    Event,
    Finished,
    Notice,
    NoticeKind,
    Output,
    ResourceUsage,
    Started,
    StatsSample,
    Verdict,
)

RUN_OUTPUT_BYTES = 1024 * 1024
ACKNOWLEDGE_EVERY_BYTES = 256 * 1024
NOTICES_PER_ANSWER = 64
_TOLD_BY_VERDICT = (Verdict.SANDBOX_LOST, Verdict.INTERNAL_ERROR)


class Followed(Protocol):
    """What there is to know of an execution that is followed."""

    handle: Handle
    ended: asyncio.Future[Finished]
    context_reset: bool

    @property
    def explicit_acknowledgements(self) -> bool:
        """Whether its client says by itself what may be released."""
        ...

    @property
    def started(self) -> Started:
        """Its beginning, without offsets."""
        ...

    @property
    def bounds(self) -> Bounds:
        """What it can have used up to now, at most."""
        ...

    def noticed(self, kind: NoticeKind) -> None:
        """Counts a notice."""
        ...

    def sandbox_usage(self) -> ResourceUsage | None:
        """What its sandbox uses now."""
        ...


async def follow(execution: Followed, reader: OutputReader, may_release: Callable[[], bool]) -> AsyncGenerator[Event]:
    """Yields `Started`, output, samples and notices, exactly one `Finished`.

    Asking for the next event says that the one before was delivered; what was delivered may be released, unless the
    client acknowledges by itself, or may not release now.
    """
    handle = execution.handle
    offsets = {**dict.fromkeys(handle.options.channels, 0), **reader.start_offsets}
    yield replace(execution.started, offsets=dict(offsets))
    waiting_bytes = 0
    try:
        while True:
            item = await reader.next(until_full=may_release() and not execution.explicit_acknowledgements)
            releases = may_release() and not execution.explicit_acknowledgements
            if isinstance(item, StatsSample):
                used = execution.bounds.usage(item.execution)
                yield replace(item, execution=used, sandbox=execution.sandbox_usage())
                continue
            if isinstance(item, Notice):
                yield item
                continue
            if item is None and reader.ended:
                if releases:
                    handle.let_go()
                break
            if item is not None:
                if item.offset > offsets[item.channel]:
                    execution.noticed(NoticeKind.GAP)
                    yield _gap(handle, item.channel, offsets[item.channel], item.offset)
                offsets[item.channel] = item.offset + len(item.data)
                yield item
                waiting_bytes += cost_bytes(item.data)
            if releases and (item is None or waiting_bytes >= ACKNOWLEDGE_EVERY_BYTES):
                handle.acknowledge(offsets)
                handle.full_at = None  # the guest says it again if that was not enough
                waiting_bytes = 0
    except (SandboxLost, ExecutionNotFound) as error:
        await expect_told(execution, error)
    finished = await execution.ended
    for gap in _missing(execution, finished, offsets):
        yield gap
    for notice in _last_notices(execution):
        yield notice
    yield finished


async def gather(
    execution: Followed, reader: OutputReader
) -> tuple[Mapping[int, bytes], tuple[Notice, ...], Finished | None]:
    """Takes output until its end, or until an answer is full or the program waits: then there is no `Finished`."""
    outputs = {channel: bytearray() for channel in execution.handle.options.channels}
    notices: list[Notice] = []
    complete = False
    try:
        while not complete and (item := await reader.next(until_full=True)) is not None:
            if isinstance(item, Output):
                gathered = outputs[item.channel]
                if item.offset > len(gathered) or not answer_room.take(len(item.data)):
                    break  # the rest is for `attach`, which says what is missing
                gathered += item.data
                if len(gathered) > RUN_OUTPUT_BYTES:
                    del gathered[RUN_OUTPUT_BYTES:]
                    break
            elif isinstance(item, Notice) and len(notices) < NOTICES_PER_ANSWER:
                notices.append(item)
        else:
            complete = reader.ended
            if complete:
                execution.handle.let_go()
    except (SandboxLost, ExecutionNotFound) as error:
        await expect_told(execution, error)
        complete = True
    finished = await execution.ended if complete else None
    if finished is not None:
        notices += _missing(execution, finished, {channel: len(data) for channel, data in outputs.items()})
        notices += _last_notices(execution)
    return {channel: bytes(gathered) for channel, gathered in outputs.items()}, tuple(notices), finished


async def expect_told(execution: Followed, error: EnclaveError) -> None:
    """Raises the error again, unless the verdict carries the news, or a gap does.

    An execution that ended before has another verdict. If what was left of its output is gone with its record, that is
    a gap; if the sandbox went away under its readers, they hear of that.
    """
    if not execution.handle.finished.done():
        raise error
    verdict = (await execution.ended).verdict
    if verdict not in _TOLD_BY_VERDICT and not isinstance(error, ExecutionNotFound):
        raise error


@contextmanager
def sampling(reader: OutputReader, interval_s: float | None) -> Iterator[None]:
    """Asks for a sample each interval until the block ends; ``None``: never."""
    if interval_s is None:
        yield
        return
    timer = _Timer(interval_s, reader.ask_sample)
    try:
        yield
    finally:
        timer.stop()


class _Timer:
    """Calls something again and again, at an interval that does not drift apart from the clock."""

    def __init__(self, interval_s: float, call: Callable[[], None]) -> None:
        self._interval_s, self._call = interval_s, call
        self._due = asyncio.get_running_loop().time()
        self._handle: asyncio.TimerHandle | None = None
        self._again()

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = max(self._due + self._interval_s, loop.time())
        self._handle = loop.call_at(self._due, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        self._call()
        self._again()

    def stop(self) -> None:
        """Calls no more."""
        if self._handle is not None:
            self._handle.cancel()


def _gap(handle: Handle, channel: int, start: int, end: int) -> Notice:
    text = f"{end - start} bytes of {CHANNEL_NAMES[channel]} "
    if handle.options.keep_last_bytes is None:
        text += "were released before this reader came to them"
    else:
        text += f"were dropped before this reader came to them: only the last {handle.options.keep_last_bytes} are kept"
    return Notice(NoticeKind.GAP, text, channel=channel, offset=start, length_bytes=end - start)


def _missing(execution: Followed, finished: Finished, offsets: Mapping[int, int]) -> list[Notice]:
    """What this reader has not had when there is no more."""
    missing = [
        _gap(execution.handle, channel, offset, total)
        for channel, offset in offsets.items()
        if (total := finished.bytes_total.get(channel, 0)) > offset
    ]
    for _ in missing:
        execution.noticed(NoticeKind.GAP)
    return missing


def _last_notices(execution: Followed) -> list[Notice]:
    if not execution.context_reset:
        return []
    text = "this ran in a fresh interpreter, since the earlier one had died; its variables are gone"
    return [Notice(NoticeKind.CONTEXT_RESET, text)]
