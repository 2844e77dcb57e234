"""The retained output of an execution, and those who read it."""

from __future__ import annotations

import collections

from .limits import CHUNK_OVERHEAD_BYTES, MERGE_BYTES, MERGE_S, STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Dict, Iterator


def cost_bytes(data: bytes) -> int:
    """What a chunk of output costs a reader's credit, so that many small ones cost what they take."""
    return len(data) + CHUNK_OVERHEAD_BYTES


class Chunk:
    """A piece of output as it was read from a pipe."""

    __slots__ = ("channel", "data", "offset", "time_s")

    def __init__(self, channel: int, offset: int, data: bytes, time_s: float) -> None:
        self.channel, self.offset, self.data, self.time_s = channel, offset, data, time_s


class Journal:
    """The retained output of one execution, addressed by byte offset in each channel.

    Chunks keep the order in which they were read. Acknowledged chunks are released from the front.
    """

    def __init__(self) -> None:
        self.chunks: Deque[Chunk] = collections.deque()
        self.first = 0  # sequence number of chunks[0]
        self.size = 0
        self.end = {STDOUT: 0, STDERR: 0}
        self.acknowledged = {STDOUT: 0, STDERR: 0}

    def append(self, channel: int, data: bytes, time_s: float) -> None:
        """Adds what was read from a channel. Small pieces that follow each other closely become one chunk."""
        last = self.chunks[-1] if self.chunks else None
        if (
            last is not None
            and last.channel == channel
            and len(last.data) + len(data) <= MERGE_BYTES
            and time_s - last.time_s < MERGE_S
        ):
            last.data += data
        else:
            self.chunks.append(Chunk(channel, self.end[channel], data, time_s))
            self.size += CHUNK_OVERHEAD_BYTES
        self.size += len(data)
        self.end[channel] += len(data)

    def acknowledge(self, channel: int, offset: int) -> None:
        """Notes that everything before an offset has arrived, and releases what nobody needs any more."""
        if channel in self.end and self.acknowledged[channel] < offset <= self.end[channel]:
            self.acknowledged[channel] = offset
        while self.chunks:
            chunk = self.chunks[0]
            if chunk.offset + len(chunk.data) > self.acknowledged[chunk.channel]:
                break
            self.chunks.popleft()
            self.first += 1
            self.size -= cost_bytes(chunk.data)

    def start(self) -> Dict[int, int]:
        """The first offset still kept, for each channel."""
        found = dict(self.end)
        for chunk in reversed(self.chunks):
            found[chunk.channel] = chunk.offset
        return found


class Reader:
    """One follower of a journal: a position, and credit for as much as the daemon will take (see `cost_bytes`)."""

    def __init__(self, name: int, journal: Journal, offsets: Dict[int, int], credit: int) -> None:
        self.name, self.credit = name, credit
        self._journal = journal
        self._next = journal.first
        self._offsets = offsets  # skip what lies below

    def chunks(self) -> Iterator[Chunk]:
        """Yields what may be sent now, and moves on. A chunk may exceed the credit that is left by its own size.

        Where output was released before this reader came to it, the next chunk's offset shows the gap.
        """
        journal = self._journal
        self._next = max(self._next - 1, journal.first)  # the last chunk may have grown since
        while self.credit > 0 and self._next < journal.first + len(journal.chunks):
            chunk = journal.chunks[self._next - journal.first]
            self._next += 1
            wanted = self._offsets[chunk.channel]
            if chunk.offset + len(chunk.data) <= wanted:
                continue
            if chunk.offset < wanted:
                chunk = Chunk(chunk.channel, wanted, chunk.data[wanted - chunk.offset :], chunk.time_s)
            self._offsets[chunk.channel] = chunk.offset + len(chunk.data)
            self.credit -= cost_bytes(chunk.data)
            yield chunk

    @property
    def at_end(self) -> bool:
        """Whether it has seen all that there is. Exact once nothing is appended any more."""
        journal = self._journal
        if not journal.chunks:
            return True
        last = journal.chunks[-1]
        seen = self._offsets[last.channel] >= last.offset + len(last.data)
        return seen and self._next >= journal.first + len(journal.chunks)
