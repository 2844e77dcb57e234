"""Streams that break anywhere and are taken up again: every frame arrives whole or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES
from enclaved.agent.guest.resync import MARK, NONCE_BYTES, Awaited, Opener, Opening, answer, opening, seal

FIRST, SECOND = b"1" * NONCE_BYTES, b"2" * NONCE_BYTES
# Payloads that look like what the stream itself is made of.
payloads = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([MARK, MARK + FIRST, MARK + SECOND, FIRST * 3, b"\xff" * 500, seal(FIRST, b"inner"), b""]),
)
frames = st.lists(payloads.map(lambda payload: encode_frame({"type": "x"}, payload)), max_size=8)


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in [*sizes, len(data)]:
        pieces.append(data[start : start + size])
        start += size
    return pieces


@given(frames, frames, st.data())
def test_half_a_frame_is_never_taken_for_one_and_what_follows_is_whole(before, after, data):
    first = opening(FIRST) + b"".join(seal(FIRST, frame) for frame in before)
    cut = data.draw(st.integers(min_value=0, max_value=len(first)))
    stream = first[:cut] + opening(SECOND) + b"".join(seal(SECOND, frame) for frame in after)
    sizes = data.draw(st.lists(st.integers(min_value=1, max_value=100_000), max_size=6))
    opener, found = Opener(), []
    for piece in in_pieces(stream, sizes):
        found += opener.feed(piece)
    assert opener.nonce == SECOND
    last = max(place for place, each in enumerate(found) if isinstance(each, Opening))
    assert found[last].nonce == SECOND
    assert found[last + 1 :] == after
    heard = [each for each in found[:last] if not isinstance(each, Opening)]
    assert heard == before[: len(heard)]


def test_a_payload_cannot_imitate_an_opening_when_its_frame_breaks():
    evil = MARK + SECOND + seal(SECOND, encode_frame({"type": "evil"}))
    for filler in (b"", b"\xff" * (MAX_PAYLOAD_BYTES - len(evil))):
        half = seal(FIRST, encode_frame({"type": "x"}, filler + evil))[:-1]
        found = Opener().feed(opening(FIRST) + half + opening(FIRST))
        assert [each.nonce for each in found if isinstance(each, Opening)] == [FIRST, FIRST]
        assert len(found) == 2


@given(frames, frames, st.data())
def test_a_daemon_hears_nothing_but_what_was_said_to_it(before, after, data):
    old = answer(FIRST) + b"".join(before)
    stream = old[data.draw(st.integers(min_value=0, max_value=len(old))) :]
    stream = stream[: data.draw(st.integers(min_value=0, max_value=len(stream)))].replace(SECOND, b"")
    stream += answer(SECOND) + b"".join(after)
    awaited, decoder, found = Awaited(SECOND), FrameDecoder(), []
    for piece in in_pieces(stream, data.draw(st.lists(st.integers(min_value=1, max_value=1000), max_size=6))):
        found += decoder.feed(awaited.feed(piece))
    assert [encode_frame(header, payload) for header, payload in found] == after


def test_the_largest_frame_passes_and_half_of_it_is_ended_by_the_fill():
    largest = encode_frame({"type": "x"}, bytes(MAX_PAYLOAD_BYTES))
    opener = Opener()
    assert opener.feed(opening(FIRST) + seal(FIRST, largest))[1:] == [largest]
    assert len(opener.feed(seal(FIRST, largest)[:1] + opening(SECOND))) == 1
    assert opener.nonce == SECOND


def test_what_is_not_held_does_not_grow():
    opener, awaited = Opener(), Awaited(FIRST)
    for _ in range(100):
        assert opener.feed(bytes(10_000)) == []
        assert awaited.feed(bytes(10_000)) == b""
    assert len(opener._buffer) < len(opening(FIRST))
    assert len(awaited._tail) < 100


def test_a_nonce_has_one_length():
    with pytest.raises(ValueError, match="16 bytes"):
        opening(b"short")
