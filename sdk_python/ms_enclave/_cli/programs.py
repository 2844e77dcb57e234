"""Runs one program in a sandbox made for it, as if it ran here: its output, its input, Ctrl-C and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ms_enclave import _results as results
from ms_enclave._cli import exits, streams
from ms_enclave._local import process_daemons
from ms_enclave._model import (
    Channel,
    DockerSandboxConfig,
    Event,
    ExceptionInfo,
    Finished,
    Notice,
    NoticeKind,
    Output,
    Started,
    Verdict,
)
from ms_enclave._transports.base import SandboxPlan, ToolCall, Transport
from ms_enclave.errors import EnclaveError, SandboxNotFound

STDIN, STDOUT, STDERR = 0, 1, 2
KEPT_BYTES: Final = 16 * 1024 * 1024
"""How much of each channel is in the result of ``--json``."""
LABELS: Final = {"ms-enclave/made-by": "ms-enclave run"}

FDS = {Channel.STDOUT: STDOUT, Channel.STDERR: STDERR, Channel.TERMINAL: STDOUT}
_SAID_BY_ITSELF = (Verdict.EXITED, Verdict.EXCEPTION)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and where."""

    tool: str
    parameters: Mapping[str, Any]
    config: DockerSandboxConfig
    stdin: AsyncIterator[bytes] | None = None
    address: str | None = None


@dataclass
class Result:
    """How a program ended, and for ``--json`` what it wrote."""

    sandbox_id: str
    execution_id: str = ""
    finished: Finished | None = None
    written: dict[Channel, bytearray] = field(default_factory=dict)
    truncated: bool = False

    async def take(self, event: Event, *, live: bool) -> None:
        """Takes in what happened. Output goes to our own streams if ``live``, and is kept otherwise."""
        match event:
            case Output() if live:
                await streams.write(FDS[event.channel], event.data)
            case Output():
                self.keep(event)
            case Notice(kind=NoticeKind.GAP):
                self.truncated = True
                say(event.message)
            case Finished():
                self.finished = event

    def keep(self, piece: Output) -> None:
        """Keeps a piece of output, up to the limit."""
        kept = self.written.setdefault(piece.channel, bytearray())
        room = KEPT_BYTES - len(kept)
        kept += piece.data[:room]
        self.truncated = self.truncated or len(piece.data) > room

    def as_json(self) -> dict[str, Any]:
        """Returns the whole of it for JSON."""
        finished = self.finished or Finished(Verdict.INTERNAL_ERROR)
        text = {channel: bytes(data).decode("utf-8", "replace") for channel, data in self.written.items()}
        exception = finished.exception
        return {
            "verdict": finished.verdict.value,
            "exit_code": finished.exit_code,
            "signal": finished.signal,
            "message": "" if finished.verdict in _SAID_BY_ITSELF else results.ending(finished),
            "stdout": text.get(Channel.STDOUT, "") + text.get(Channel.TERMINAL, ""),
            "stderr": text.get(Channel.STDERR, ""),
            "truncated": self.truncated or finished.verdict is Verdict.OUTPUT_LIMIT,
            "exception": asdict(exception) if isinstance(exception, ExceptionInfo) else None,
            "timeout_s": finished.timeout_s,
            "limits_hit": dict(finished.limits_hit),
            "usage": results.usage_values(finished.usage),
            "phases": asdict(finished.phases),
            "sandbox_id": self.sandbox_id,
            "execution_id": self.execution_id,
        }

    def reason(self) -> str:
        """Says why the program ended, if it did not end by itself and so said nothing about it."""
        if self.finished is None or self.finished.verdict in _SAID_BY_ITSELF:
            return ""
        return results.ending(self.finished)


class Run:
    """One run, from the sandbox's creation to its removal."""

    def __init__(self, program: Program, *, live: bool) -> None:
        """``live``: output goes to our own streams while it comes; otherwise it is kept in `result`."""
        self._program = program
        self._live = live
        self.result = Result(sandbox_id=f"run-{uuid.uuid4().hex[:12]}")
        self._interrupted = False
        self._ended_by: signal.Signals | None = None
        self._running: Transport | None = None
        """The way to the daemon while the program runs there."""
        self._interrupting: asyncio.Task[None] | None = None

    async def to_the_end(self) -> int:
        """Runs the program and returns our exit code.

        The first Ctrl-C interrupts the program, the second one kills it; a signal to end kills it at once. Raises
        what `Transport.create_sandbox` and `Transport.stream` raise.
        """
        work = asyncio.create_task(self._run())
        with self._signals(work):
            try:
                await work
            except asyncio.CancelledError:
                return exits.signal_code(self._ended_by) if self._ended_by else exits.ExitCode.INTERRUPTED
            except BrokenPipeError:
                return exits.ExitCode.NOBODY_READS
        if self.result.finished is None:
            return exits.ExitCode.NOT_RUN
        return exits.of_program(self.result.finished, interrupted=self._interrupted)

    @contextlib.contextmanager
    def _signals(self, task: asyncio.Task[Any]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number, task)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals, task: asyncio.Task[Any]) -> None:
        if self._ended_by is not None:
            return  # the sandbox is being removed, which takes no longer than it must
        if number is signal.SIGINT and self._running is not None and not self._interrupted:
            self._interrupted = True
            self._interrupting = asyncio.create_task(self._interrupt(self._running))
            if streams.is_terminal(STDERR):
                say("interrupted the program; Ctrl-C again kills it")
            return
        self._ended_by = number
        task.cancel()

    async def _interrupt(self, transport: Transport) -> None:
        """Does what a terminal does at Ctrl-C."""
        with contextlib.suppress(EnclaveError):  # it has ended; or else the second Ctrl-C needs no signal
            await transport.executions.signal(self.result.execution_id, self.result.sandbox_id, signal.SIGINT)

    async def _run(self) -> None:
        program, sandbox_id = self._program, self.result.sandbox_id
        transport = await process_daemons().connect(program.address)
        await transport.create_sandbox(SandboxPlan(sandbox_id, program.config, None, LABELS))
        try:
            call = ToolCall(sandbox_id, program.tool, program.parameters, None, program.stdin)
            async with contextlib.aclosing(transport.stream(call)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        self.result.execution_id = event.execution_id
                        self._running = transport
                    await self.result.take(event, live=self._live)
        finally:
            self._running = None
            if self._interrupting is not None:
                self._interrupting.cancel()
            with contextlib.suppress(SandboxNotFound):
                await transport.delete_sandbox(sandbox_id)


def own_stdin(*, from_terminal: bool) -> AsyncIterator[bytes] | None:
    """Returns our own standard input; ``None`` if there is none, or if it is a terminal and that is not wanted."""
    if not streams.is_open(STDIN) or (streams.is_terminal(STDIN) and not from_terminal):
        return None
    return streams.read(STDIN)


def say(text: str) -> None:
    """Writes one line about us, not from the program, on standard error."""
    print(f"ms-enclave: {text}", file=sys.stderr, flush=True)
