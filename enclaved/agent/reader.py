"""One follower of an execution: what the guest has sent it, and what the daemon adds, in one order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from enclaved.agent.guest.frames import FrameError
from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES
from enclaved.errors import EnclaveError, GuestUnavailable
from enclaved.model import Notice, Output, StatsSample

END_PATIENCE_S = 30.0
CREDIT_BYTES = 2 * MAX_PAYLOAD_BYTES
"""What a guest may have sent to a reader that has not taken it, but for one more chunk (see `cost_bytes`)."""
SAMPLE_PATIENCE_S = 2.0
"""How long a sample that does not come keeps the next one from being asked for."""


class Followed(Protocol):
    """The execution that a reader follows."""

    finished: asyncio.Future[Mapping[str, Any]]
    full_at: Mapping[int, int] | None
    readers: dict[int, OutputReader]

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Sends a frame about this execution."""
        ...


class OutputReader:
    """One follower of an execution's output. The guest sends no more than the credit that this grants.

    Beside that it holds one notice between two chunks, and the last sample: what a slow follower makes of it is
    bounded, and only samples are ever left out.
    """

    def __init__(
        self,
        handle: Followed,
        number: int,
        offsets: Mapping[int, int] | None,
        credit_bytes: int = CREDIT_BYTES,
    ) -> None:
        self.number = number
        self.handle = handle
        self._credit_bytes = credit_bytes
        self.subscribed: asyncio.Future[Mapping[int, int]] = asyncio.get_running_loop().create_future()
        self.start_offsets: Mapping[int, int] = dict(offsets or {})
        """Where it begins; what the guest says of it, once it is subscribed."""
        self.offsets: dict[int, int] = dict(offsets or {})
        self._items: deque[Output | Notice] = deque()
        self._sample: StatsSample | None = None
        self._sample_asked_at: float | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_bytes = 0
        self._consumed_bytes = 0
        self.ended = False
        self.wants_whole = False
        """Whether it has no use for a part of the output. Once it was lost it takes what comes."""
        self._error: EnclaveError | None = None

    async def next(self, until_full: bool = False) -> Output | Notice | StatsSample | None:
        """Waits for what comes next; ``None`` when the execution has ended and everything was delivered.

        With ``until_full`` it is ``None`` too when the program waits because its journal is full, and all that there
        is was delivered.

        Raises `SandboxLost` or `ExecutionNotFound` if there will be no more.
        """
        while True:
            if self._sample is not None:
                sample, self._sample = self._sample, None
                return sample
            if self._items:
                break
            if self._error is not None:
                raise self._error
            if self.ended or (until_full and self._is_at_stop()):
                return None
            await self._wait()
        item = self._items.popleft()
        if isinstance(item, Output):
            self._waiting_bytes -= cost_bytes(item.data)
            self._consumed_bytes += cost_bytes(item.data)
            if self._consumed_bytes >= self._credit_bytes // 2:
                self.handle.send("credit", reader=self.number, bytes=self._consumed_bytes)
                self._consumed_bytes = 0
        return item

    def _is_at_stop(self) -> bool:
        stop = self.handle.full_at
        return stop is not None and all(self.offsets.get(channel, 0) >= offset for channel, offset in stop.items())

    async def _wait(self) -> None:
        """Waits for news. Once the execution has ended the guest has little time for the rest of the output."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(END_PATIENCE_S if self.handle.finished.done() else None):
                await self._waiter
        except TimeoutError:
            self._error = GuestUnavailable("the guest does not send the rest of the output")
        finally:
            self._waiter = None

    async def wait_subscribed(self) -> None:
        """Waits until the guest knows this reader. Raises what `Handle.subscribe` promises, or `GuestUnavailable`."""
        try:
            async with asyncio.timeout(END_PATIENCE_S):
                await self.subscribed
        except TimeoutError as error:
            raise GuestUnavailable("the guest does not answer; try to attach again") from error

    def subscription(self) -> dict[str, Any]:
        """What the guest must know to send from where this reader stands."""
        offsets = {str(channel): offset for channel, offset in self.offsets.items()}
        self._consumed_bytes = 0
        self._sample_asked_at = None
        found = {"reader": self.number, "offsets": offsets, "credit_bytes": self._credit_bytes - self._waiting_bytes}
        return {**found, "whole": True} if self.wants_whole else found

    def ask_sample(self) -> None:
        """Asks the guest what the execution uses, unless it still has to answer the question before."""
        now = asyncio.get_running_loop().time()
        if self._sample_asked_at is None or now > self._sample_asked_at + SAMPLE_PATIENCE_S:
            self._sample_asked_at = now
            self.handle.send("sample", number=self.number)

    def close(self) -> None:
        """Stops following."""
        if self.handle.readers.pop(self.number, None) is not None and not self.ended:
            self.handle.send("unsubscribe", reader=self.number)

    def push(self, chunk: Output) -> None:
        """Takes a chunk from the guest. Raises FrameError if it was sent before, or without credit."""
        expected = self.offsets.get(chunk.channel, 0)
        if chunk.offset < expected or not chunk.data:
            raise FrameError(f"{len(chunk.data)} bytes of output at {chunk.offset}, wanted {expected}")
        if self._waiting_bytes >= self._credit_bytes:
            raise FrameError("output without credit")
        self.offsets[chunk.channel] = chunk.offset + len(chunk.data)
        self._waiting_bytes += cost_bytes(chunk.data)
        self._items.append(chunk)
        self.wake()

    def push_notice(self, notice: Notice) -> None:
        """Takes a notice, behind the output that is there. The same one again, before it was taken, says no more."""
        if not self._items or self._items[-1] != notice:
            self._items.append(notice)
            self.wake()

    def push_sample(self, sample: StatsSample) -> None:
        """Takes a sample, instead of one that was not taken yet. Nobody has asked for it: it is left."""
        if self._sample_asked_at is not None:
            self._sample_asked_at = None
            self._sample = sample
            self.wake()

    def start_at(self, offsets: Mapping[int, int]) -> None:
        """The guest follows from these offsets."""
        self.offsets = dict(offsets)
        if not self.subscribed.done():
            self.start_offsets = dict(offsets)
            self.subscribed.set_result(self.start_offsets)

    def end(self) -> None:
        """Everything has been sent."""
        self.ended = True
        self.wake()

    def fail(self, error: EnclaveError) -> None:
        """There will be no more."""
        self._error = error
        if not self.subscribed.done():
            self.subscribed.set_exception(error)
            self.subscribed.exception()  # whoever waits has it; nobody else needs the warning
        self.wake()

    def wake(self) -> None:
        """Lets whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
