"""Executions while they run: to be followed, written to, signalled, waited for, left and taken up again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from ms_enclave._model import Channel, Event, ExecutionInfo, ExecutionOptions, Finished, TerminalSize
from ms_enclave._transports.base import ExecutionCalls, ExecutionFollower, ToolCall
from ms_enclave.errors import EnclaveError, ExecutionNotFound, InvalidRequest

WAIT_S: Final = 60.0
"""How long one question for the end waits for it. A longer wait asks again."""
CANCEL_S: Final = 5.0
"""How long a caller that was cancelled waits for its execution to be cancelled as well."""


class Execution:
    """One run of a tool, made by `Sandbox.start_execution` or `Sandbox.get_execution`. Works from any event loop.

    ``async for event in execution`` brings what happens, each byte of output exactly once, also when the connection
    or the daemon is lost in between. Only one task at a time may read; others `attach`. A program whose output nobody
    reads waits when 4 MiB of it are kept (unless `Retention.KEEP_LAST` lets it drop the oldest).

    At the end of ``async with execution`` a program that still runs is killed, if it was started by this object and
    is not detached.
    """

    def __init__(
        self, calls: ExecutionCalls, follower: ExecutionFollower, sandbox_id: str, *, kills_when_left: bool = False
    ) -> None:
        self._calls, self._follower = calls, follower
        self._sandbox_id = sandbox_id
        self._kills_when_left = kills_when_left
        self._feeding: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, calls: ExecutionCalls, call: ToolCall) -> Execution:
        """Starts a call. `Sandbox.start_execution` is the documented way."""
        detached = call.options.detach
        if detached:
            execution = cls(calls, await calls.start_detached(call), call.sandbox_id)
        else:
            execution = cls(calls, calls.follow(call), call.sandbox_id, kills_when_left=True)
            try:
                await execution._follower.start()
            except asyncio.CancelledError:
                await execution._cancel_quietly()
                raise
            except EnclaveError:
                await execution._follower.close()
                raise
        execution._feed(call.options)
        return execution

    @property
    def id(self) -> str:
        """Its id."""
        return self._follower.execution_id

    @property
    def sandbox_id(self) -> str:
        """The sandbox that it runs in."""
        return self._sandbox_id

    @property
    def finished(self) -> Finished | None:
        """How it ended, as far as this object saw it; `wait` asks."""
        return self._follower.finished

    # -- what comes down -----------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Returns the next event. Leaving the loop kills nothing, and another loop goes on where this one was.

        Raises `ExecutionUnreachable` when the connection was lost and could not be made again, `OffsetReleased`.
        """
        event = await self._follower.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def wait(self, timeout: float | None = None) -> Finished | None:
        """Waits for the end, and returns how it ended; ``None`` if it has not ended after ``timeout`` seconds.

        Reads no output, so that it is there for who iterates afterwards. Raises `ExecutionNotFound` when it ended
        more than 60 s ago, `ExecutionUnreachable`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._follower.finished is None:
            if self._kills_when_left:
                self._follower.hold()
            left_s = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - time.monotonic()))
            try:
                info = await self._calls.wait(self.id, self._sandbox_id, left_s)
            except ExecutionNotFound:
                if self._follower.finished is None:
                    raise
                break
            if info.finished is not None:
                return info.finished
            if deadline is not None and time.monotonic() >= deadline:
                return None
        return self._follower.finished

    async def info(self) -> ExecutionInfo:
        """Asks the daemon how it is. Raises `ExecutionNotFound`."""
        return await self._calls.get(self.id, self._sandbox_id)

    def acknowledge(self, offsets: Mapping[Channel, int]) -> None:
        """Releases output below these offsets: what your own storage has safely.

        Without a call of this, what you iterated over is released. After one, only further calls release anything,
        and a program with `Retention.UNTIL_ACK` waits for them.
        """
        self._follower.acknowledge(offsets)

    def attach(
        self,
        offsets: Mapping[Channel, int] | None = None,
        *,
        observe: bool = True,
        stats_interval: float | None = None,
    ) -> Execution:
        """Returns another object for it, which follows from ``offsets`` on (not named: the first byte still kept).

        ``observe`` (the default): release nothing, hold up nothing, send nothing. ``False``: take the place of the one
        that follows it now, who observes from then on and may meet gaps.
        ``stats_interval``: seconds between samples; ``None``: none. Iterating raises `OffsetReleased` for an offset
        that is no longer kept.
        """
        follower = self._calls.attach(
            self.id, self._sandbox_id, offsets or {}, observe=observe, stats_interval=stats_interval
        )
        return Execution(self._calls, follower, self._sandbox_id)

    # -- what goes up --------------------------------------------------------------------------------------------

    async def write(self, data: bytes | str) -> None:
        """Sends input; returns when it is on its way, and waits while the program does not read what was sent before.

        Input is sent again after a lost connection and arrives once. Raises `InvalidRequest` if it was started without
        ``stdin`` or ``terminal``, `WrongState` if it has ended.
        """
        await self._follower.write(data.encode() if isinstance(data, str) else bytes(data))

    def end_input(self) -> None:
        """Says that no more input comes. Raises as `write`."""
        self._follower.end_input()

    def resize(self, rows: int, columns: int) -> None:
        """Tells it that its terminal has another size. Raises as `write`."""
        self._follower.resize(TerminalSize(rows, columns))

    async def signal(self, number: int, *, leader_only: bool = False) -> None:
        """Sends a signal, 1 to 64, to all its processes, or to the first one only.

        Before the program runs it is kept for it; after the end it does nothing. Raises `ExecutionNotFound`,
        `InvalidRequest`.
        """
        await self._calls.signal(self.id, self._sandbox_id, int(number), leader_only=leader_only)

    async def cancel(self) -> None:
        """Kills it. Does nothing if it has ended. Raises `ExecutionNotFound`."""
        await self._calls.cancel(self.id, self._sandbox_id)

    # -- leaving -------------------------------------------------------------------------------------------------

    async def detach(self) -> None:
        """Lets go of it, also where it was to be killed at the end of ``async with``.

        It goes on for its ``detach_grace`` (60 s), or as long as its timeout allows if it was started with ``detach``.
        """
        self._kills_when_left = False
        await self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kills_when_left and self._follower.finished is None:
            await self._cancel_quietly()
        await self._release()

    async def _release(self) -> None:
        if self._feeding is not None:
            with contextlib.suppress(RuntimeError):  # the loop that it belongs to may be closed
                self._feeding.cancel()
        await self._follower.close()

    async def _cancel_quietly(self) -> None:
        """Cancels it as well as a few seconds allow. If that fails, the daemon's grace period ends it."""
        with contextlib.suppress(EnclaveError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await self.cancel()
        await self._follower.close()

    def _feed(self, options: ExecutionOptions) -> None:
        """Begins to send the input that was given with the call."""
        given = options.stdin
        if isinstance(given, bool):
            return

        async def feed() -> None:
            with contextlib.suppress(EnclaveError):  # it ended without reading all of it
                await self.write(given)
                self.end_input()

        self._feeding = asyncio.create_task(feed())


def merged(parameters: Mapping[str, object] | None, given: Mapping[str, object]) -> dict[str, object]:
    """Returns the parameters of a tool, which come as one mapping or as keywords. Raises `InvalidRequest` for both."""
    if parameters and given:
        raise InvalidRequest("parameters: give them as one mapping or as keywords, and not as both")
    return {**(parameters or {}), **given}
