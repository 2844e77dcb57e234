"""Stands between our own streams and an execution, as if it ran here."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ms_enclave._cli import exits, streams, terminal
from ms_enclave._cli.programs import STDERR, STDIN, STDOUT, Result, say
from ms_enclave._model import Event
from ms_enclave._transports.base import ExecutionCalls, ExecutionFollower
from ms_enclave.errors import EnclaveError

QUIET_S: Final = 0.5
"""Who only wants what is there waits so long for more of it."""
CANCEL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Manner:
    """How a program is followed."""

    live: bool = True
    """Output goes to our own streams while it comes; otherwise it is kept in the result."""
    stdin: bool = False
    """Whether it gets our standard input."""
    terminal: bool = False
    """Whether it has a terminal, so that every key is for it."""
    owned: bool = True
    """Whether it is ours, so that Ctrl-C is for it and it ends with us. Otherwise Ctrl-C leaves it."""
    to_the_end: bool = True
    """Whether to wait for more than is there."""


class Relay:
    """Follows one execution from here."""

    def __init__(self, calls: ExecutionCalls, follower: ExecutionFollower, sandbox_id: str, manner: Manner) -> None:
        self._calls, self._follower, self._manner = calls, follower, manner
        self.result = Result(sandbox_id, follower.execution_id)
        self.left = False
        """Whether it was left while it ran."""
        self._interrupted = False
        self._ended_by: signal.Signals | None = None
        self._work: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()

    async def follow(self) -> int:
        """Follows the program and returns our exit code. Raises what `ExecutionFollower.next` raises."""
        own_terminal = self._manner.terminal and self._manner.stdin and streams.is_terminal(STDIN)
        with self._signals(), terminal.raw(STDIN) if own_terminal else contextlib.nullcontext():
            self._work = asyncio.create_task(self._follow())
            try:
                await self._work
            except asyncio.CancelledError:
                if not self.left:
                    await self._end()
            except BrokenPipeError:
                await self._end()
                return exits.ExitCode.NOBODY_READS
            finally:
                for helper in self._helpers:
                    helper.cancel()
                await self._follower.close()
        if self._ended_by is not None:
            return exits.signal_code(self._ended_by)
        if self.left or not self._manner.to_the_end:
            return exits.ExitCode.OK
        if self.result.finished is None:
            return exits.ExitCode.NOT_RUN
        return exits.of_program(self.result.finished, interrupted=self._interrupted)

    async def _follow(self) -> None:
        await self._follower.start()
        if self._manner.stdin:
            self._help(self._feed())
        if self._manner.terminal:
            self._follower.resize(terminal.size_of(STDOUT))
        while (event := await self._next()) is not None:
            await self.result.take(event, live=self._manner.live)

    async def _next(self) -> Event | None:
        try:
            async with asyncio.timeout(None if self._manner.to_the_end else QUIET_S):
                return await self._follower.next()
        except TimeoutError as error:
            if isinstance(error, EnclaveError):
                raise
            return None

    async def _feed(self) -> None:
        keys = terminal.DetachKeys() if self._manner.terminal else None
        with contextlib.suppress(EnclaveError):  # it ended, or whoever reads its output learns why not
            try:
                async for data in streams.read(STDIN):
                    await self._follower.write(data if keys is None else keys.pass_on(data))
                    if keys is not None and keys.seen:
                        self._leave()
                        return
            except OSError as error:
                if isinstance(error, EnclaveError):
                    raise
                say(f"standard input: {error.strerror}")
            self._follower.end_input()

    def _leave(self) -> None:
        self.left = True
        if self._work is not None:
            self._work.cancel()

    async def _end(self) -> None:
        """Kills the program, as well as a few seconds allow, if it is ours."""
        if self._manner.owned:
            with contextlib.suppress(EnclaveError, TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await self._calls.cancel(self._follower.execution_id, "")

    async def _interrupt(self) -> None:
        with contextlib.suppress(EnclaveError):  # the second Ctrl-C needs no signal
            await self._calls.signal(self._follower.execution_id, "", signal.SIGINT)

    def _help(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._helpers.add(asyncio.create_task(coroutine))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        for number in ends:
            loop.add_signal_handler(number, self._on_signal, number)
        if self._manner.terminal:
            loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        try:
            yield
        finally:
            for number in (*ends, signal.SIGWINCH):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._ended_by is not None:
            return
        if not self._manner.owned and number is signal.SIGINT:
            self._leave()
        elif number is signal.SIGINT and not self._interrupted:
            self._interrupted = True
            self._help(self._interrupt())
            if streams.is_terminal(STDERR):
                say("interrupted the program; Ctrl-C again kills it")
        else:
            self._ended_by = number
            if self._work is not None:
                self._work.cancel()

    def _on_resize(self) -> None:
        with contextlib.suppress(EnclaveError):  # it has ended
            self._follower.resize(terminal.size_of(STDOUT))
