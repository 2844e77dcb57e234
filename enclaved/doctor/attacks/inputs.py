"""Hurting whoever writes: input that nobody reads, and input that never ends."""

from __future__ import annotations

import hashlib
from typing import Final

from enclaved.doctor.attacks.base import MIB, Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import all_of, ends, memory_below, tells

_LARGE: Final = bytes(range(256)) * 4096 * 16
"""16 MiB."""


def _attack(name: str, sentence: str, program: Program, judge: Judge, *, memory: bool = False) -> Attack:
    needs = frozenset({"memory"}) if memory else frozenset[str]()
    return Attack(f"input.{name}", Category.INPUT, sentence, judge, program, alone=memory, needs=needs)


ATTACKS: Final = (
    _attack(
        "never-read",
        "Is sent 16 MiB and reads none of it.",
        Program("time.sleep(2)\nos._exit(2)\n", stdin=_LARGE),
        all_of(ends("EXITED", exit_code=2), memory_below(32 * MIB)),
        memory=True,
    ),
    _attack(
        "slow",
        "Is sent 16 MiB and reads slowly at first.",
        Program(
            """
import hashlib
digest, size = hashlib.sha256(), 0
for _ in range(5):
    time.sleep(0.1)
    piece = os.read(0, 4096)
    digest.update(piece)
    size += len(piece)
while True:
    piece = os.read(0, 65536)
    if not piece:
        break
    digest.update(piece)
    size += len(piece)
tell("sha256", digest.hexdigest())
""",
            stdin=_LARGE,
            timeout_s=60,
        ),
        all_of(
            tells("sha256", lambda value: value == hashlib.sha256(_LARGE).hexdigest(), "every byte arrived"),
            ends("EXITED", exit_code=0),
        ),
    ),
    _attack(
        "waits-for-the-end",
        "Reads until the end of an input that does not end.",
        Program("while os.read(0, 4096):\n    pass\n", stdin=b"x", ends_input=False, timeout_s=1),
        ends("TIMEOUT"),
    ),
    _attack(
        "none-there",
        "Reads although nobody sends anything.",
        Program("tell('read', len(os.read(0, 4096)))\n"),
        all_of(tells("read", lambda value: value == 0, "an end at once"), ends("EXITED", exit_code=0)),
    ),
    _attack(
        "closes-early",
        "Closes its input and goes on while more of it comes.",
        Program("os.read(0, 1)\nos.close(0)\ntime.sleep(1)\nos._exit(4)\n", stdin=_LARGE[: 4 * MIB]),
        ends("EXITED", exit_code=4),
    ),
)
