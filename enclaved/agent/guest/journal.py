"""The retained output of an execution, and those who read it."""

from __future__ import annotations

import collections

from .limits import CHUNK_OVERHEAD_BYTES, MERGE_BYTES, MERGE_S, STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Dict, Iterator, Optional, Sequence


def cost_bytes(data: bytes) -> int:
    """What a chunk of output costs a reader's credit, so that many small ones cost what they take."""
    return len(data) + CHUNK_OVERHEAD_BYTES


class Chunk:
    """A piece of output as it was read from a pipe or a terminal."""

    __slots__ = ("channel", "data", "late", "offset", "time_s")

    def __init__(self, channel: int, offset: int, data: bytes, time_s: float, late: bool = False) -> None:
        self.channel, self.offset, self.data, self.time_s, self.late = channel, offset, data, time_s, late


class Journal:
    """The retained output of one execution, addressed by byte offset in each channel.

    Chunks keep the order in which they were read. Acknowledged chunks are released from the front. With
    ``keep_last_bytes`` an acknowledgement releases nothing; instead the oldest output goes as soon as all of it,
    bookkeeping included, takes more than that.
    """

    def __init__(self, channels: Sequence[int] = (STDOUT, STDERR), keep_last_bytes: Optional[int] = None) -> None:
        self.chunks: Deque[Chunk] = collections.deque()
        self.first = 0  # sequence number of chunks[0]
        self.size = 0
        self.end = dict.fromkeys(channels, 0)
        self.acknowledged = dict.fromkeys(channels, 0)
        self.keep_last_bytes = keep_last_bytes

    def append(self, channel: int, data: bytes, time_s: float, late: bool = False) -> None:
        """Adds what was read from a channel. Small pieces that follow each other closely become one chunk."""
        last = self.chunks[-1] if self.chunks else None
        if (
            last is not None
            and last.channel == channel
            and last.late == late
            and len(last.data) + len(data) <= MERGE_BYTES
            and time_s - last.time_s < MERGE_S
        ):
            last.data += data
        else:
            self.chunks.append(Chunk(channel, self.end[channel], data, time_s, late))
            self.size += CHUNK_OVERHEAD_BYTES
        self.size += len(data)
        self.end[channel] += len(data)
        if self.keep_last_bytes is not None:
            self.shrink(self.keep_last_bytes)

    def acknowledge(self, channel: int, offset: int) -> None:
        """Notes that everything before an offset has arrived, and releases what nobody needs any more."""
        if channel in self.end and self.acknowledged[channel] < offset <= self.end[channel]:
            self.acknowledged[channel] = offset
        if self.keep_last_bytes is not None:
            return
        while self.chunks:
            chunk = self.chunks[0]
            if chunk.offset + len(chunk.data) > self.acknowledged[chunk.channel]:
                break
            self._release_first()

    def shrink(self, most_bytes: int) -> None:
        """Drops the oldest output, of one chunk only as much as must be, until the rest takes no more than this."""
        while self.size > most_bytes and self.chunks:
            chunk = self.chunks[0]
            excess = self.size - most_bytes
            if excess >= len(chunk.data):
                self._release_first()
            else:
                chunk.data = chunk.data[excess:]
                chunk.offset += excess
                self.size -= excess

    def _release_first(self) -> None:
        self.size -= cost_bytes(self.chunks.popleft().data)
        self.first += 1

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
        self.wants_whole = False  # it has no use for a part of the output
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
                data = chunk.data[wanted - chunk.offset :]
                chunk = Chunk(chunk.channel, wanted, data, chunk.time_s, chunk.late)
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

    def skip_released(self) -> Optional[Dict[int, int]]:
        """Moves on over output that was released where nothing follows that would show the gap.

        Returns where it stands then, for all channels; None if there was no such gap.
        """
        if self._offsets == self._journal.end or not self.at_end:
            return None
        self._offsets.update(self._journal.end)
        return dict(self._offsets)
