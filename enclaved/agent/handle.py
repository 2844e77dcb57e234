"""One execution as the daemon knows it of the guest: its output readers, its input, its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from enclaved.agent.fields import boolean, integer, offsets, seconds, string, usage
from enclaved.agent.guest.frames import FrameError
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES
from enclaved.agent.jobs import WireJob
from enclaved.agent.reader import CREDIT_BYTES, OutputReader
from enclaved.agent.sender import Hold, Sender
from enclaved.agent.stdin import Input
from enclaved.errors import (
    EnclaveError,
    ExecutionNotFound,
    GuestUnavailable,
    LimitReached,
    OffsetReleased,
    SandboxLost,
    WrongState,
)
from enclaved.model import (
    CHANNEL_NAMES,
    STDERR,
    STDOUT,
    TERMINAL,
    Notice,
    NoticeKind,
    Output,
    StatsSample,
    TerminalSize,
)

SIGNALS_KEPT = 16
_AWAITING = Notice(NoticeKind.AWAITING_INPUT, "the program waits for input, and none is on its way")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the guest should run a job. ``idle_timeout_s=0``: none. ``keep_last_bytes=None``: until acknowledged."""

    timeout_s: float
    output_limit_bytes: int | None = None
    stdin: bool = False
    merge_stderr: bool = False
    idle_timeout_s: float = 0.0
    terminal: TerminalSize | None = None
    keep_last_bytes: int | None = None
    credit_bytes: int = CREDIT_BYTES
    """How much output each reader holds at most."""

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that the execution writes to."""
        return (TERMINAL,) if self.terminal is not None else (STDOUT, STDERR)

    @property
    def has_input(self) -> bool:
        """Whether input can be sent to it."""
        return self.stdin or self.terminal is not None


class Handle:
    """One execution as the daemon knows it of the guest.

    ``name`` is what the guest calls it: its id, then ``:`` and a mark that no other execution of this id has. So what
    a guest still keeps of an earlier one can never pass for this one. ``job=None``: an earlier daemon has sent it.
    """

    def __init__(self, link: Sender, name: str, job: WireJob | None, options: RunOptions) -> None:
        self.link, self.name, self.options = link, name, options
        self.execution_id = public_id(name)
        self.job = job
        self.adopted = job is None
        """Whether an earlier daemon has sent it."""
        self.readers: dict[int, OutputReader] = {}
        self.finished: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self.full_at: Mapping[int, int] | None = None
        """Where its output stops, since the program waits for acknowledgements; ``None`` while it goes on."""
        self.awaiting_input = False
        self.on_awaiting_input: Callable[[], None] | None = None
        """Called each time the program begins to wait for input."""
        self.input = Input(self._send_stdin, known=not self.adopted)
        self._failure: EnclaveError | None = None
        self._next_reader = 0
        self.shown: dict[int, int] = {}
        """Up to where a reader has had each channel: nobody can have received more."""
        self._acknowledged: dict[int, int] = {}
        self._cancelled = False
        self._let_go = False
        self._owed: dict[str, None] = {}
        """What to say when the guest reads again: kinds of frames of which only the last one counts."""
        self._signals: list[tuple[int, bool]] = []
        self._size: TerminalSize | None = None

    def subscribe(self, positions: Mapping[int, int] | None = None) -> OutputReader:
        """Adds a reader. Wait until it is subscribed to know where it starts, or that it cannot.

        Waiting raises `OffsetReleased`, `ExecutionNotFound`, `SandboxLost`. Raises `GuestUnavailable` if too much waits
        for the guest.
        """
        self._check_room()
        reader = self._make_reader(positions)
        if self._failure is not None:
            reader.fail(self._failure)
        else:
            self.readers[reader.number] = reader
            self.send("subscribe", **reader.subscription())
            if self.awaiting_input:
                reader.push_notice(_AWAITING)
        return reader

    def _make_reader(self, positions: Mapping[int, int] | None) -> OutputReader:
        self._next_reader += 1
        return OutputReader(self, self._next_reader, positions, self.options.credit_bytes)

    def start(self, *, whole: bool = False) -> OutputReader:
        """Sends the job, with a first reader from the first byte on.

        ``whole``: it has no use for a part of the output, so the guest need not send any before the end, unless it
        is much.
        """
        reader = self._make_reader(None)
        reader.wants_whole = whole and self.options.keep_last_bytes is None  # of that a late reader has less
        self.readers[reader.number] = reader
        reader.start_at(dict.fromkeys(self.options.channels, 0))
        self._send_job(reader)
        return reader

    def _send_job(self, reader: OutputReader | None) -> None:
        if self.job is None:
            return
        document, options = self.job.document, self.options
        more: dict[str, Any] = {}
        if reader is not None:
            more["subscribe"] = reader.subscription()
        if options.idle_timeout_s:
            more["idle_timeout_s"] = options.idle_timeout_s
        if options.terminal is not None:
            more["terminal"] = [options.terminal.rows, options.terminal.columns]
        if options.keep_last_bytes is not None:
            more["keep_last_bytes"] = options.keep_last_bytes
        self.send(
            "run",
            document[:MAX_PAYLOAD_BYTES],
            context=self.job.context,
            timeout_s=options.timeout_s,
            output_limit_bytes=options.output_limit_bytes,
            stdin=options.stdin,
            merge_stderr=options.merge_stderr,
            job_bytes=len(document),
            **more,
        )
        for start in range(MAX_PAYLOAD_BYTES, len(document), MAX_PAYLOAD_BYTES):
            self.send("job", document[start : start + MAX_PAYLOAD_BYTES])
        if options.has_input:
            self.send("watch_input")

    def resume(self, hold: Hold | None) -> None:
        """Takes up the conversation with a guest that came back, or that an earlier daemon spoke to."""
        if hold is None and (self.finished.done() or self.job is None):
            self.fail(ExecutionNotFound(self.execution_id))  # it is not sent again: it may have run
            return
        readers = list(self.readers.values())
        self._owed.clear()  # all of it is said here
        if hold is None:
            self._send_job(None)
        else:
            self.job = None
            self.input.take_up(hold.stdin_offset, hold.stdin_ended)
            if hold.report is not None:
                self.on_frame("finished", hold.report, b"")
            elif self.options.has_input:
                self.awaiting_input = False  # if it still waits, the guest says so again
                self.send("watch_input")
        for reader in readers:
            self.send("subscribe", **reader.subscription())
        if self._acknowledged:
            self._send_acknowledgement(self._acknowledged)
        self.input.repeat()
        if self.input.ended:
            self.send("end_of_input")
        if self._size is not None:
            self._send_size(self._size)
        signals, self._signals = self._signals, []
        for number, leader_only in signals:
            self.send("signal", number=number, leader_only=leader_only)
        if self._cancelled:
            self.send("cancel")

    def acknowledge(self, positions: Mapping[int, int]) -> None:
        """Lets the guest release output before these offsets."""
        news = {channel: offset for channel, offset in positions.items() if offset > self._acknowledged.get(channel, 0)}
        if news:
            self._acknowledged.update(news)
            self.full_at = None
            if not self._owes("acknowledge"):
                self._send_acknowledgement(news)

    def _send_acknowledgement(self, positions: Mapping[int, int]) -> None:
        self.send("acknowledge", offsets={str(channel): offset for channel, offset in positions.items()})

    async def wait_shown(self, positions: Mapping[int, int]) -> bool:
        """Whether all before these offsets was sent to a reader; waits for the guest's word on those that just began.

        Raises `GuestUnavailable` if that does not come.
        """

        def is_shown() -> bool:
            return all(offset <= self.shown.get(channel, 0) for channel, offset in positions.items())

        waited = [reader for reader in self.readers.values() if not reader.subscribed.done()]
        for reader in waited:
            if not is_shown():
                with contextlib.suppress(OffsetReleased, ExecutionNotFound, SandboxLost):
                    await reader.wait_subscribed()
        return is_shown()

    def _send_stdin(self, offset: int, data: bytes) -> None:
        self.send("stdin", data, offset=offset)

    async def end_input(self) -> None:
        """Says that no more input comes."""
        await self.input.wait_known()
        if not self.input.ended:
            self.input.ended = True
            self.send("end_of_input")

    def signal(self, number: int, *, leader_only: bool = False) -> None:
        """Sends a signal; one that comes while the guest is away is sent when it is back, as far as there is room.

        Raises `GuestUnavailable` if too much waits for the guest.
        """
        if self.link.connected:
            self._check_room()
            self.send("signal", number=number, leader_only=leader_only)
        elif len(self._signals) < SIGNALS_KEPT:
            self._signals.append((number, leader_only))

    def resize(self, size: TerminalSize) -> None:
        """Tells the terminal its size. Of several that wait for the guest it hears the last."""
        self._size = size
        if not self._owes("resize"):
            self._send_size(size)

    def _send_size(self, size: TerminalSize) -> None:
        self.send("resize", rows=size.rows, columns=size.columns)

    def cancel(self) -> None:
        """Asks the guest to kill the execution."""
        self._cancelled = True
        if not self._owes("cancel"):
            self.send("cancel")

    def _owes(self, kind: str) -> bool:
        """Notes what is to be said later, if too much waits for the guest now."""
        if self.link.congested:
            self._owed[kind] = None
        return self.link.congested

    def _check_room(self) -> None:
        if self.link.congested:
            raise GuestUnavailable(f"the guest of sandbox {self.link.sandbox_id!r} does not read; try again")

    def pay(self) -> None:
        """The guest reads again: says what was owed, as it is now."""
        owed, self._owed = self._owed, {}
        for kind in owed:
            if kind == "acknowledge":
                self._send_acknowledgement(self._acknowledged)
            elif kind == "resize" and self._size is not None:
                self._send_size(self._size)
            elif kind == "cancel":
                self.send("cancel")

    def is_needed(self, totals: Mapping[int, int]) -> bool:
        """Whether its output, so much as it wrote in all, must not be lost: as far as is known nobody has all of it."""
        if self.options.keep_last_bytes is not None or self._let_go or self._failure is not None:
            return False
        return any(total > self._acknowledged.get(channel, 0) for channel, total in totals.items())

    def let_go(self) -> None:
        """Says that nobody needs its output any more: the guest gives it up where it has no room."""
        if not self._let_go:
            self._let_go = True
            self.send("may_go")

    def release(self) -> None:
        """Forgets an execution that has ended; the guest forgets it by itself, by age and by number."""
        error = ExecutionNotFound(self.execution_id)
        self._failure = self._failure or error
        for reader in list(self.readers.values()):
            reader.close()
            reader.fail(error)
        self.let_go()
        self.link.handles.pop(self.name, None)

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Sends a frame about this execution; nothing while the guest is away, since ``resume`` says it again."""
        self.link.send({"type": kind, "execution": self.name, **fields}, payload)

    def on_frame(self, kind: str, header: Mapping[str, Any], payload: bytes) -> None:
        """Takes in a frame of the guest about this execution."""
        self.job = None  # the guest has all of it
        if kind == "finished":
            self.input.close()
            self.awaiting_input = False
            if not self.finished.done():
                self.finished.set_result(header)
            for reader in self.readers.values():
                reader.wake()
        elif kind == "refused":
            self.fail(self._refusal(string(header, "code"), string(header, "message")))
        elif kind == "full":
            self.full_at = offsets(header, self.options.channels)
            for reader in self.readers.values():
                reader.wake()
        elif kind == "stdin_taken":
            self.input.on_taken(integer(header, "offset"))
        elif kind == "awaiting_input":
            self._on_awaiting_input(boolean(header, "waiting"))
        else:
            follower = self.readers.get(integer(header, "number" if kind == "sampled" else "reader"))
            if follower is not None:
                self._on_reader_frame(follower, kind, header, payload)

    def _on_awaiting_input(self, waiting: bool) -> None:
        if self.finished.done() or not self.options.has_input:
            return
        began, self.awaiting_input = waiting and not self.awaiting_input, waiting
        if began:
            for reader in self.readers.values():
                reader.push_notice(_AWAITING)
            if self.on_awaiting_input is not None:
                self.on_awaiting_input()

    def _on_reader_frame(self, reader: OutputReader, kind: str, header: Mapping[str, Any], payload: bytes) -> None:
        if kind == "output":
            channel, offset = integer(header, "channel"), integer(header, "offset")
            if channel not in self.options.channels:
                raise FrameError("output of an unknown channel")
            reader.push(Output(channel, offset, payload, seconds(header, "time_s"), boolean(header, "late")))
            self._show(reader)
        elif kind == "sampled":
            reader.push_sample(StatsSample(seconds(header, "time_s"), usage(header), None))
        elif kind == "subscribed":
            reader.start_at(offsets(header, self.options.channels))
            self._show(reader)
        elif kind == "end":
            self.readers.pop(reader.number, None)
            reader.end()
        elif kind == "released":
            self.readers.pop(reader.number, None)
            name = CHANNEL_NAMES.get(integer(header, "channel"), "unknown")
            reader.fail(OffsetReleased(name, integer(header, "offset"), integer(header, "first_offset")))
        elif kind == "unknown":
            self.readers.pop(reader.number, None)
            reader.fail(ExecutionNotFound(self.execution_id))
        else:
            raise FrameError(f"unknown type {kind!r}")

    def _show(self, reader: OutputReader) -> None:
        for channel, offset in reader.offsets.items():
            self.shown[channel] = max(offset, self.shown.get(channel, 0))

    def _refusal(self, code: str, message: str) -> EnclaveError:
        sandbox = f"sandbox/{self.link.sandbox_id}"
        if code == "no_context":
            text = f"{message or 'the context is not open'}; open it first (OpenContext), or leave `context` out"
            return WrongState(f"{sandbox}/context", "not open", "open", text)
        return LimitReached(sandbox, "executions" if code == "full" else "processes", message)

    def fail(self, error: EnclaveError) -> None:
        """The execution will not go on, whoever asks."""
        self._failure = error
        self.awaiting_input = False
        self.input.close()
        if not self.finished.done():
            self.finished.set_exception(error)
            self.finished.exception()
        for reader in list(self.readers.values()):
            reader.fail(error)
        self.readers.clear()
        self.link.handles.pop(self.name, None)


def wire_name(execution_id: str, mark: int) -> str:
    """What the guest calls an execution."""
    return f"{execution_id}:{mark:x}"


def public_id(name: str) -> str:
    """The id of an execution that the guest calls by this name."""
    return name.partition(":")[0]
