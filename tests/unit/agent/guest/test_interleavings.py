"""Very many interleavings of what can happen to a journal and to a stream of frames, each checked byte by byte."""

from __future__ import annotations

import random

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.guest.journal import Journal, Reader, cost_bytes
from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES, MERGE_BYTES, STDERR, STDOUT, TERMINAL
from tests.cases import cases
from tests.mutations import VALUES, pieces

SIZES = (1, 2, 30, 300, MERGE_BYTES - 1, MERGE_BYTES, MERGE_BYTES + 1, 5000)
STEPS = 40
PLENTY = 10**9


class Life:
    """A journal with its readers, and all that was ever written to it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        channels = chance.choice(((STDOUT, STDERR), (STDOUT,), (TERMINAL,)))
        self.keep_last_bytes = chance.choice((None, None, 1000, 4096, 20_000))
        self.journal = Journal(channels, self.keep_last_bytes)
        self.written = {channel: bytearray() for channel in channels}
        self.acknowledged = dict.fromkeys(channels, 0)
        self.released = dict.fromkeys(channels, 0)
        self.readers: list[Reader] = []
        self.positions: dict[Reader, dict[int, int]] = {}
        self.now_s = 0.0

    def append(self) -> None:
        channel = self.chance.choice(list(self.written))
        data = self.chance.randbytes(self.chance.choice(SIZES))
        self.now_s += self.chance.choice((0.0, 0.01, 1.0))
        self.journal.append(channel, data, self.now_s, late=self.chance.random() < 0.1)
        self.written[channel] += data

    def acknowledge(self) -> None:
        channel = self.chance.choice(list(self.written))
        offset = int(len(self.written[channel]) * self.chance.uniform(0, 1.1))
        self.journal.acknowledge(channel, offset)
        if offset <= len(self.written[channel]):
            self.acknowledged[channel] = max(self.acknowledged[channel], offset)

    def shrink(self) -> None:
        """As the sandbox does that has no room; only where nobody is promised that all is kept."""
        if self.keep_last_bytes is not None:
            self.journal.shrink(self.journal.size // 2)

    def attach(self) -> None:
        first = self.journal.start()
        offsets = {
            channel: first[channel] + int((len(data) - first[channel]) * self.chance.random())
            for channel, data in self.written.items()
        }
        reader = Reader(0, self.journal, dict(offsets), self.chance.randrange(3000))
        self.readers.append(reader)
        self.positions[reader] = offsets

    def drop(self) -> None:
        if self.readers:
            self.readers.pop(self.chance.randrange(len(self.readers)))

    def grant(self) -> None:
        if self.readers:
            self.chance.choice(self.readers).credit += self.chance.randrange(1, 8000)

    def pump(self) -> None:
        for reader in self.readers:
            self.take(reader)

    def take(self, reader: Reader) -> None:
        """Gives a reader what its credit allows: what was written, where it was, and gaps only where allowed."""
        position = self.positions[reader]
        before = reader.credit
        last = 0
        for chunk in reader.chunks():
            data, offset = chunk.data, chunk.offset
            assert data
            assert data == self.written[chunk.channel][offset : offset + len(data)]
            gap = offset - position[chunk.channel]
            assert gap == 0 or 0 < offset <= self.released[chunk.channel]
            position[chunk.channel] = offset + len(data)
            before, last = before - cost_bytes(data), cost_bytes(data)
        assert reader.credit == before
        assert reader.credit > -last or not last

    def check(self) -> None:
        """What is kept is what was written last, and takes what the journal says."""
        journal = self.journal
        assert journal.size == sum(len(chunk.data) + CHUNK_OVERHEAD_BYTES for chunk in journal.chunks)
        assert self.keep_last_bytes is None or journal.size <= self.keep_last_bytes
        first = journal.start()
        for channel, written in self.written.items():
            kept = b"".join(chunk.data for chunk in journal.chunks if chunk.channel == channel)
            assert kept == written[first[channel] :]
            assert journal.end[channel] == len(written)
            assert first[channel] >= self.released[channel], "what was released is back"
            if self.keep_last_bytes is None:
                assert first[channel] <= self.acknowledged[channel], "released, and nobody has it"
            self.released[channel] = first[channel]

    def end(self) -> None:
        """Who has credit enough reaches the end, and sees what is missing."""
        for reader in self.readers:
            reader.credit = PLENTY
            self.take(reader)
            assert reader.at_end
            for channel, position in self.positions[reader].items():
                missing = position < len(self.written[channel])
                assert not missing or self.released[channel] == len(self.written[channel])
            skipped = reader.skip_released()
            if skipped is not None:
                assert skipped == self.journal.end
            assert (skipped is None) == (self.positions[reader] == self.journal.end)


def test_no_interleaving_loses_or_doubles_a_byte_of_a_journal() -> None:
    for seed in range(cases(1000)):
        chance = random.Random(seed)
        life = Life(chance)
        acts = (life.append, life.append, life.append, life.acknowledge, life.attach, life.drop, life.grant, life.pump)
        try:
            for _ in range(chance.randrange(STEPS)):
                chance.choice((*acts, life.shrink))()
                life.check()
            life.end()
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}") from error


def test_no_split_of_a_stream_changes_its_frames() -> None:
    # Not the one that differs from itself, nor what is too long for a header.
    values = [value for value in VALUES if value == value and len(repr(value)) < 1000]
    for seed in range(cases(2000)):
        chance = random.Random(seed)
        sent = []
        for _ in range(chance.randrange(1, 6)):
            header = {"type": "x", "value": chance.choice(values), chance.choice("abc"): chance.choice(values[:9])}
            sent.append((header, chance.randbytes(chance.choice((0, 1, 200, 65_536)))))
        decoder, received = FrameDecoder(), []
        for piece in pieces(b"".join(encode_frame(*frame) for frame in sent), chance):
            received += decoder.feed(piece)
        assert received == sent, f"with seed {seed}"
