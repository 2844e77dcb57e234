"""A journal that keeps the last output, against a model that remembers every byte."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enclaved.agent.guest.journal import Chunk, Journal, Reader, cost_bytes
from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES, MERGE_BYTES, MERGE_S, STDERR, STDOUT, TERMINAL

PLENTY = 10**9
KEPT = 5000

sizes = st.integers(1, 40) | st.integers(MERGE_BYTES - 3, MERGE_BYTES + 3) | st.integers(KEPT - 300, KEPT + 300)
pauses = st.sampled_from([0.0, MERGE_S / 2, MERGE_S, 1.0])


class KeepLast(RuleBasedStateMachine):
    """Appends, acknowledges, shrinks and follows in any order, over any set of channels."""

    @initialize(channels=st.sampled_from([(STDOUT, STDERR), (TERMINAL,), (STDOUT, STDERR, TERMINAL)]))
    def begin(self, channels: tuple[int, ...]) -> None:
        self.channels = channels
        self.journal = Journal(channels, KEPT)
        self.written = {channel: bytearray() for channel in channels}
        self.readers: list[tuple[Reader, dict[int, int]]] = []
        self.number = 0
        self.now_s = 0.0
        self.newest = b""

    @rule(data=st.data(), size=sizes, pause=pauses, late=st.booleans())
    def append(self, data: st.DataObject, size: int, pause: float, late: bool) -> None:
        channel = data.draw(st.sampled_from(self.channels))
        self.now_s += pause
        self.number += 1
        self.newest = (b"%d:" % self.number * size)[:size]
        self.written[channel] += self.newest
        self.journal.append(channel, self.newest, self.now_s, late)
        last = self.journal.chunks[-1]
        assert (last.channel, last.late) == (channel, late)
        assert last.data.endswith(self.newest[-(KEPT - CHUNK_OVERHEAD_BYTES) :]), "the newest output went"

    @rule(data=st.data(), share=st.floats(0, 1))
    def acknowledge(self, data: st.DataObject, share: float) -> None:
        channel = data.draw(st.sampled_from(self.channels))
        before = self.journal.start()
        self.journal.acknowledge(channel, int(len(self.written[channel]) * share))
        assert self.journal.start() == before

    @rule(most_bytes=st.integers(0, KEPT))
    def shrink(self, most_bytes: int) -> None:
        self.journal.shrink(most_bytes)
        assert self.journal.size <= most_bytes

    @precondition(lambda self: len(self.readers) < 3)
    @rule(credit=st.integers(0, 3000))
    def follow(self, credit: int) -> None:
        start = self.journal.start()
        self.readers.append((Reader(self.number, self.journal, dict(start), credit), start))

    @precondition(lambda self: self.readers)
    @rule(credit=st.integers(1, 3000))
    def read(self, credit: int) -> None:
        for reader, position in self.readers:
            reader.credit += credit
            for chunk in reader.chunks():
                self.check(chunk, position)

    def check(self, chunk: Chunk, position: dict[int, int]) -> None:
        assert chunk.data
        assert chunk.offset >= position[chunk.channel], "something came twice"
        assert chunk.data == bytes(self.written[chunk.channel][chunk.offset : chunk.offset + len(chunk.data)])
        position[chunk.channel] = chunk.offset + len(chunk.data)

    @invariant()
    def accounts_are_right(self) -> None:
        journal = self.journal
        assert journal.size == sum(cost_bytes(chunk.data) for chunk in journal.chunks) <= KEPT
        assert journal.end == {channel: len(self.written[channel]) for channel in self.channels}
        for channel in self.channels:
            kept = [chunk for chunk in journal.chunks if chunk.channel == channel]
            start = journal.start()[channel]
            assert all(chunk.data for chunk in kept)
            assert b"".join(chunk.data for chunk in kept) == bytes(self.written[channel][start:])
            assert all(a.offset + len(a.data) == b.offset for a, b in itertools.pairwise(kept))

    def teardown(self) -> None:
        for reader, position in getattr(self, "readers", []):
            reader.credit = PLENTY
            for chunk in reader.chunks():
                self.check(chunk, position)
            assert reader.at_end
            stands = reader.skip_released()
            if stands is not None:
                position.update(stands)
            assert position == self.journal.end
            assert reader.skip_released() is None


TestKeepLast = KeepLast.TestCase


def test_the_oldest_output_goes_byte_by_byte() -> None:
    journal = Journal((TERMINAL,), 1000)
    journal.append(TERMINAL, b"a" * 500 + b"b" * 300, 0)
    assert journal.start() == {TERMINAL: 0}
    journal.append(TERMINAL, b"c" * 500, 1)
    assert journal.start() == {TERMINAL: 700}
    assert [chunk.data for chunk in journal.chunks] == [b"b" * 100, b"c" * 500]
    assert journal.size == 1000


def test_one_piece_larger_than_what_is_kept_leaves_its_end() -> None:
    journal = Journal((STDOUT, STDERR), 1000)
    journal.append(STDOUT, b"x" * 5000 + b"end", 0)
    assert journal.end == {STDOUT: 5003, STDERR: 0}
    (chunk,) = journal.chunks
    assert chunk.data == b"x" * 797 + b"end"
    assert chunk.offset == 5003 - 800


def test_what_comes_late_is_no_part_of_a_chunk_that_came_in_time() -> None:
    journal = Journal()
    journal.append(STDOUT, b"late", 0, late=True)
    journal.append(STDOUT, b"r", 0, late=True)
    journal.append(STDOUT, b"now", 0)
    assert [(chunk.data, chunk.late) for chunk in journal.chunks] == [(b"later", True), (b"now", False)]
    reader = Reader(1, journal, {STDOUT: 2, STDERR: 0}, PLENTY)
    assert [(chunk.offset, chunk.data, chunk.late) for chunk in reader.chunks()] == [
        (2, b"ter", True),
        (5, b"now", False),
    ]


def test_a_reader_learns_of_what_was_released_on_a_channel_that_is_silent_now() -> None:
    journal = Journal()
    journal.append(STDERR, b"err", 0)
    journal.append(STDOUT, b"out", 0)
    slow = Reader(1, journal, {STDOUT: 0, STDERR: 0}, 0)
    assert slow.skip_released() is None  # there is more to come
    journal.acknowledge(STDERR, 3)
    assert slow.skip_released() is None
    slow.credit = PLENTY
    assert [chunk.data for chunk in slow.chunks()] == [b"out"]
    assert slow.skip_released() == {STDOUT: 3, STDERR: 3}
    assert slow.skip_released() is None


@pytest.mark.parametrize("channel", [STDOUT, 0, 4])
def test_a_journal_knows_only_its_own_channels(channel: int) -> None:
    journal = Journal((TERMINAL,))
    journal.append(TERMINAL, b"abc", 0)
    journal.acknowledge(channel, 3)
    assert journal.start() == {TERMINAL: 0}
