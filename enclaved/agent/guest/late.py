"""What the threads of a context write between two calls."""

from __future__ import annotations

import os

from .limits import CHUNK_OVERHEAD_BYTES, LATE_BYTES, MAX_PAYLOAD_BYTES
from .loop import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .loop import Loop

    Sink = Callable[[int, bytes], None]  # takes a channel and what was written to it


class Late:
    """Reads the pipes of a call that has ended for as long as its context writes to them.

    A context keeps the streams of a call until the next one brings new ones. So whatever comes through them after the
    end of their call was written too late for it, whoever wrote it; user code has no say in that. The pipes are always
    read, so that no thread waits, but only so much is kept for the next call.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.pipes: Dict[int, int] = {}  # read end by channel
        self.pieces: List[Tuple[int, bytearray]] = []  # channel and bytes, in the order in which they came
        self.taken_bytes = 0  # since the last call has ended
        self.sink: Optional[Sink] = None  # the call that runs now

    def follow(self, pipes: Dict[int, int]) -> None:
        """Takes over the pipes of a call that has just ended, and closes those of the call before."""
        self.close()
        self.sink, self.taken_bytes = None, 0
        self.pipes = pipes
        for channel, fd in pipes.items():
            self.loop.watch(fd, READABLE, self._reads(channel, fd))

    def _reads(self, channel: int, fd: int) -> Callable[[int], None]:
        def on_ready(_: int) -> None:
            self.read(channel, fd)

        return on_ready

    def read(self, channel: int, fd: int) -> int:
        """Moves one piece out of a pipe and returns its size; 0 if there was nothing."""
        try:
            data = os.read(fd, MAX_PAYLOAD_BYTES)
        except BlockingIOError:
            return 0
        if data:
            self.keep(channel, data)
        else:
            self.loop.unwatch(fd)
            os.close(fd)
            del self.pipes[channel]
        return len(data)

    def keep(self, channel: int, data: bytes) -> None:
        """Keeps as much as there is room for, bookkeeping included; the rest is lost."""
        continued = bool(self.pieces) and self.pieces[-1][0] == channel
        overhead = 0 if continued else CHUNK_OVERHEAD_BYTES
        data = data[: max(0, LATE_BYTES - self.taken_bytes - overhead)]
        if not data:
            return
        self.taken_bytes += len(data) + overhead
        if self.sink is not None:
            self.sink(channel, data)
        elif continued:
            self.pieces[-1][1].extend(data)
        else:
            self.pieces.append((channel, bytearray(data)))

    def hand_over(self, sink: Sink) -> None:
        """Gives what came up to now to the next call, which begins; what still comes is given to it at once."""
        for channel, fd in list(self.pipes.items()):
            while self.taken_bytes < LATE_BYTES and self.read(channel, fd):
                pass
        for channel, data in self.pieces:
            sink(channel, bytes(data))
        self.pieces = []
        self.sink = sink

    def close(self) -> None:
        """Stops reading. Whoever still writes there finds a broken pipe."""
        for fd in self.pipes.values():
            self.loop.unwatch(fd)
            os.close(fd)
        self.pipes = {}
