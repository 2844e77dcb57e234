"""The journal and its readers, against a model that remembers every byte."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from enclaved.agent.guest.journal import Chunk, Journal, Reader, cost_bytes
from enclaved.agent.guest.limits import CHUNK_OVERHEAD_BYTES, MERGE_BYTES, MERGE_S, STDERR, STDOUT

CHANNELS = (STDOUT, STDERR)
PLENTY = 10**9

channels = st.sampled_from(CHANNELS)
# Around the size up to which chunks are merged, and around nothing.
sizes = st.integers(1, 40) | st.integers(MERGE_BYTES - 3, MERGE_BYTES + 3) | st.just(5000)
pauses = st.sampled_from([0.0, MERGE_S / 2, MERGE_S, 1.0])


@dataclass
class Follower:
    """A reader, and what it has been given."""

    reader: Reader
    position: dict[int, int]
    sent_bytes: int = 0
    granted_bytes: int = 0
    order: list[int] = field(default_factory=list)


class Journals(RuleBasedStateMachine):
    """Appends, acknowledges, follows and lets go in any order."""

    @initialize()
    def begin(self) -> None:
        self.journal = Journal()
        self.written = {channel: bytearray() for channel in CHANNELS}
        self.acknowledged = dict.fromkeys(CHANNELS, 0)
        self.followers: dict[int, Follower] = {}
        self.number = 0
        self.now_s = 0.0

    @rule(channel=channels, size=sizes, pause=pauses)
    def append(self, channel: int, size: int, pause: float) -> None:
        self.now_s += pause
        self.number += 1
        # Content that says where it comes from, so that a doubled or a lost piece cannot look right.
        data = (b"%d:" % self.number * size)[:size]
        self.journal.append(channel, data, self.now_s)
        self.written[channel] += data

    @rule(channel=channels, share=st.floats(0, 1.2))
    def acknowledge(self, channel: int, share: float) -> None:
        offset = int(len(self.written[channel]) * share)
        self.journal.acknowledge(channel, offset)
        if offset <= len(self.written[channel]):
            self.acknowledged[channel] = max(self.acknowledged[channel], offset)

    @precondition(lambda self: len(self.followers) < 4)
    @rule(share=st.floats(0, 1), credit=st.integers(0, 3000))
    def follow(self, share: float, credit: int) -> None:
        first = self.journal.start()
        offsets = {c: first[c] + int((len(self.written[c]) - first[c]) * share) for c in CHANNELS}
        reader = Reader(self.number, self.journal, dict(offsets), credit)
        self.number += 1
        self.followers[self.number] = Follower(reader, offsets, granted_bytes=credit)

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), credit=st.integers(1, 3000))
    def grant(self, data: st.DataObject, credit: int) -> None:
        follower = self.followers[data.draw(st.sampled_from(sorted(self.followers)))]
        follower.reader.credit += credit
        follower.granted_bytes += credit

    @precondition(lambda self: self.followers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        del self.followers[data.draw(st.sampled_from(sorted(self.followers)))]

    @rule()
    def pump(self) -> None:
        for follower in self.followers.values():
            self.take(follower)

    def take(self, follower: Follower) -> None:
        for chunk in follower.reader.chunks():
            self.check(follower, chunk)

    def check(self, follower: Follower, chunk: Chunk) -> None:
        position = follower.position[chunk.channel]
        assert chunk.data
        assert chunk.offset >= position, "something came twice"
        assert chunk.offset == position or chunk.offset <= self.acknowledged[chunk.channel], "lost, and not released"
        assert chunk.data == bytes(self.written[chunk.channel][chunk.offset : chunk.offset + len(chunk.data)])
        # It is over the credit by no more than this one chunk.
        assert follower.sent_bytes < follower.granted_bytes
        follower.sent_bytes += cost_bytes(chunk.data)
        follower.position[chunk.channel] = chunk.offset + len(chunk.data)

    @invariant()
    def accounts_are_right(self) -> None:
        journal = self.journal
        assert journal.size == sum(len(chunk.data) + CHUNK_OVERHEAD_BYTES for chunk in journal.chunks)
        assert journal.end == {channel: len(self.written[channel]) for channel in CHANNELS}
        assert journal.acknowledged == self.acknowledged
        for channel in CHANNELS:
            kept = [chunk for chunk in journal.chunks if chunk.channel == channel]
            start = journal.start()[channel]
            assert start == (kept[0].offset if kept else journal.end[channel])
            assert b"".join(chunk.data for chunk in kept) == bytes(self.written[channel][start:])
            assert all(a.offset + len(a.data) == b.offset for a, b in itertools.pairwise(kept))
        if journal.chunks:  # nothing is kept longer than it must be
            first = journal.chunks[0]
            assert first.offset + len(first.data) > self.acknowledged[first.channel]

    def teardown(self) -> None:
        for follower in getattr(self, "followers", {}).values():
            follower.reader.credit = PLENTY
            follower.granted_bytes = follower.sent_bytes + PLENTY
            self.take(follower)
            assert follower.reader.at_end
            for channel in CHANNELS:
                missing = follower.position[channel] < len(self.written[channel])
                assert not missing or self.acknowledged[channel] == len(self.written[channel])


TestJournals = Journals.TestCase


def test_a_reader_that_finds_everything_of_one_channel_released_reaches_the_end() -> None:
    journal = Journal()
    journal.append(STDOUT, b"out", 0)
    journal.append(STDERR, b"err", 0)
    slow = Reader(1, journal, {STDOUT: 0, STDERR: 0}, 0)
    journal.acknowledge(STDOUT, 3)
    assert not slow.at_end
    slow.credit = PLENTY
    assert [(chunk.channel, chunk.data) for chunk in slow.chunks()] == [(STDERR, b"err")]
    assert slow.at_end


def test_many_small_chunks_cost_credit_for_what_they_take() -> None:
    journal = Journal()
    for number in range(1000):
        journal.append(CHANNELS[number % 2], b"x", 0)
    reader = Reader(1, journal, {STDOUT: 0, STDERR: 0}, 10 * CHUNK_OVERHEAD_BYTES)
    assert len(list(reader.chunks())) == 10


@pytest.mark.parametrize(
    ("pause_s", "size", "chunks"),
    [(0.0, 1, 1), (MERGE_S, 1, 2), (0.0, MERGE_BYTES, 2), (0.0, MERGE_BYTES - 1, 1)],
)
def test_small_pieces_that_follow_each_other_closely_become_one_chunk(pause_s: float, size: int, chunks: int) -> None:
    journal = Journal()
    journal.append(STDOUT, b"a", 1.0)
    journal.append(STDOUT, b"b" * size, 1.0 + pause_s)
    assert len(journal.chunks) == chunks
    assert journal.end[STDOUT] == 1 + size


def test_a_chunk_that_grew_after_it_was_read_is_continued_where_it_was() -> None:
    journal = Journal()
    reader = Reader(1, journal, {STDOUT: 0, STDERR: 0}, PLENTY)
    journal.append(STDOUT, b"ab", 0)
    assert [(chunk.offset, chunk.data) for chunk in reader.chunks()] == [(0, b"ab")]
    journal.append(STDOUT, b"cd", 0)
    assert not reader.at_end
    assert [(chunk.offset, chunk.data) for chunk in reader.chunks()] == [(2, b"cd")]
    assert reader.at_end


def test_nonsense_acknowledgements_change_nothing() -> None:
    journal = Journal()
    journal.append(STDOUT, b"abc", 0)
    for channel, offset in ((STDOUT, 4), (STDOUT, -1), (3, 1), (STDERR, 1)):
        journal.acknowledge(channel, offset)
    assert journal.start() == {STDOUT: 0, STDERR: 0}
    assert len(journal.chunks) == 1
