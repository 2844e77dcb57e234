"""Conversations of frames that were valid, and are not any more."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

Frame = tuple[dict[str, Any], bytes]

VALUES: Sequence[Any] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    255,
    2**31,
    2**62,
    2**63,
    2**64,
    10**300,
    -(2**70),
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "-1",
    "a:1",
    "\ud800",
    "\0",
    "é" * 3000,
    [],
    [0],
    [1, 2],
    [None, {}],
    ["24", "80"],
    {},
    {"1": 0},
    {"1": -1},
    {"2": 2**63},
    {"3": "x"},
    {"x": 0},
    {"": {}},
)
"""What may stand where something else should."""


def encoded(frame: Frame) -> bytes:
    """Makes the bytes of a frame without asking whether it is one."""
    header, payload = frame
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return struct.pack(">IH", (len(text) + len(payload)) & 0xFFFFFFFF, len(text) & 0xFFFF) + text + payload


def mutated(conversation: Sequence[Frame], chance: random.Random) -> bytes:
    """Changes a valid conversation at a place or a few, in its frames, in its bytes, or in both."""
    frames = [(dict(header), payload) for header, payload in conversation]
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        _change_frames(frames, chance)
    data = bytearray(b"".join(encoded(frame) for frame in frames))
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        _change_bytes(data, chance)
    return bytes(data)


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """Cuts bytes as a socket may deliver them."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 1, 3))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _change_frames(frames: list[Frame], chance: random.Random) -> None:
    if not frames:
        return
    index = chance.randrange(len(frames))
    header, payload = frames[index]
    name = chance.choice(list(header) or ["type"])
    match chance.randrange(8):
        case 0 | 1 | 2:
            header[name] = chance.choice(VALUES)
        case 3:
            header.pop(name, None)
        case 4:
            frames.insert(chance.randrange(len(frames) + 1), (dict(header), payload))
        case 5:
            frames.append(frames.pop(index))
        case 6:
            inner = header.get(name)
            if isinstance(inner, dict) and inner:
                header[name] = {**inner, chance.choice((*inner, "x", "9")): chance.choice(VALUES)}
            else:
                header[chance.choice(("reader", "execution", "offset", "offsets", "number", "type", "x"))] = (
                    chance.choice(VALUES)
                )
        case _:
            frames[index] = (header, chance.choice((b"", b"\0", payload * 2, bytes(65_537), b"\xff" * 100)))


def _change_bytes(data: bytearray, chance: random.Random) -> None:
    if not data:
        return
    at = chance.randrange(len(data))
    match chance.randrange(5):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            del data[at : at + chance.choice((1, 4, 50))]
        case 2:
            data[at:at] = chance.randbytes(chance.choice((1, 6, 40)))
        case 3:
            del data[at:]
        case _:
            data[at:at] = data[at : at + 60]
