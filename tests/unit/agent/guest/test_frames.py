"""The frame codec: one definition for both sides, and the first thing that bytes from a sandbox meet."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.agent.guest.frames import FrameDecoder, FrameError, encode_frame
from enclaved.agent.guest.limits import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES

MOST_BYTES = 6 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
"""The largest frame there is, with its prefix."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
headers = st.builds(
    lambda fields, kind: {**fields, "type": kind},
    st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    st.text(max_size=12),
)
frames = st.lists(st.tuples(headers, st.binary(max_size=300)), max_size=8)


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">IH", len(header) + len(payload), len(header)) + header + payload


@given(frames, st.data())
def test_frames_come_out_as_they_went_in_however_the_bytes_are_split(
    sent: list[tuple[dict[str, Any], bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(header, payload) for header, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = FrameDecoder()

    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])

    assert received == sent
    assert decoder._buffer == b""


@given(frames)
def test_frames_come_out_byte_by_byte(sent: list[tuple[dict[str, Any], bytes]]) -> None:
    stream = b"".join(encode_frame(header, payload) for header, payload in sent)
    decoder = FrameDecoder()
    assert [frame for byte in stream for frame in decoder.feed(bytes([byte]))] == sent


@given(st.lists(st.binary(max_size=2000), max_size=30))
def test_garbage_is_an_error_or_waits_within_bounds(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    for piece in pieces:
        try:
            decoder.feed(piece)
        except FrameError:
            break
        assert len(decoder._buffer) < MOST_BYTES


@given(frames.filter(bool), st.data())
def test_a_stream_with_one_flipped_byte_is_an_error_or_other_frames_but_no_crash(
    sent: list[tuple[dict[str, Any], bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(encode_frame(header, payload) for header, payload in sent))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FrameError):
        FrameDecoder().feed(bytes(stream))


def test_the_largest_frame_passes() -> None:
    header = {"type": "x", "fill": ""}
    header["fill"] = "f" * (MAX_HEADER_BYTES - len(json.dumps(header, separators=(",", ":"))))
    frame = encode_frame(header, b"p" * MAX_PAYLOAD_BYTES)
    assert len(frame) == MOST_BYTES
    assert FrameDecoder().feed(frame) == [(header, b"p" * MAX_PAYLOAD_BYTES)]


@pytest.mark.parametrize(
    ("header", "payload"),
    [({"type": "x"}, b"p" * (MAX_PAYLOAD_BYTES + 1)), ({"type": "x" * MAX_HEADER_BYTES}, b"")],
    ids=["payload", "header"],
)
def test_a_frame_that_the_peer_would_refuse_is_not_made(header: dict[str, Any], payload: bytes) -> None:
    with pytest.raises(ValueError, match="too large"):
        encode_frame(header, payload)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IH", 2**32 - 1, 20),
        struct.pack(">IH", MAX_PAYLOAD_BYTES + 21, 20),
        struct.pack(">IH", MAX_HEADER_BYTES + 1, MAX_HEADER_BYTES + 1),
        struct.pack(">IH", 10, 11),
    ],
    ids=["4 GiB", "payload too long", "header too long", "header longer than the frame"],
)
def test_a_length_beyond_the_limits_is_refused_before_anything_is_kept_for_it(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameDecoder().feed(data)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"type":1}',
        b'{"type":null}',
        b"\xff\xfe",
        b'{"type":"x"}garbage',
        b"[" * MAX_HEADER_BYTES,
        b'{"type":' * 2000,
        b"1" * MAX_HEADER_BYTES,
    ],
    ids=lambda header: repr(header[:20]),
)
def test_a_header_that_is_no_object_with_a_type_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        FrameDecoder().feed(raw(header))


def test_what_came_before_nonsense_is_lost_with_the_connection() -> None:
    """Nobody may act on half of what a peer says that cannot be trusted any more."""
    with pytest.raises(FrameError):
        FrameDecoder().feed(encode_frame({"type": "x"}) + raw(b"nonsense"))
