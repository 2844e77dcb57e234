"""Hurting whoever reads: floods, odd bytes, and lines that look like somebody else's."""

from __future__ import annotations

import hashlib
from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import MIB, Attack, Category, Evidence, Judge, Program
from enclaved.doctor.attacks.judges import all_of, ends, finds, log_is_clean, memory_below, printed

_GROWTH_BYTES: Final = 32 * MIB
_FLOOD_BYTES: Final = 96 * MIB
_LINE_BYTES: Final = 24 * MIB
_ODD: Final = bytes(range(256)) * 64
_ESCAPES: Final = b"\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b]52;c;cm0gLXJm\x07\x9b31m\r\x08\x00\x1bc" * 32


def _repeated(piece: bytes, times: int) -> str:
    digest = hashlib.sha256()
    for _ in range(times):
        digest.update(piece)
    return digest.hexdigest()


def _attack(
    name: str, sentence: str, program: Program, judge: Judge, *, needs: str = "", alone: bool = False
) -> Attack:
    return Attack(
        f"output.{name}",
        Category.OUTPUT,
        sentence,
        judge,
        program,
        alone=alone,
        needs=frozenset({needs} if needs else ()),
    )


def _writes(piece: str, times: int) -> str:
    return (
        f"piece = {piece}\nfor _ in range({times}):\n    view = memoryview(piece)\n    while view:\n"
        "        view = view[os.write(1, view):]\n"
    )


async def _unread(act: Act) -> Evidence:
    """Starts a flood and reads nothing of it for a while, then cancels it."""
    run = await act.run_unread(Program(_writes("b'x' * 65536", 8192), timeout_s=25), wait_s=2.0)
    return act.evidence(run)


async def _many_readers(act: Act) -> Evidence:
    """Has 24 clients attach to one flood of which none reads."""
    run = await act.run_unread(Program(_writes("b'x' * 65536", 8192), timeout_s=25), wait_s=2.0, readers=24)
    return act.evidence(run)


async def _unary(act: Act) -> Evidence:
    """Asks for a flood as the answer to one unary call."""
    size = await act.run_unary("import os\nfor _ in range(256):\n    os.write(1, b'y' * 65536)\n")
    return act.evidence(answered_bytes=size)


ATTACKS: Final = (
    _attack(
        "flood",
        "Writes 96 MiB as fast as it can.",
        Program(_writes("b'x' * 65536", _FLOOD_BYTES // 65536), timeout_s=60),
        all_of(printed(_repeated(b"x" * 65536, _FLOOD_BYTES // 65536), _FLOOD_BYTES), memory_below(_GROWTH_BYTES)),
        needs="memory",
        alone=True,
    ),
    _attack(
        "endless-line",
        "Writes one line of 24 MiB.",
        Program(_writes("b'-' * 65536", _LINE_BYTES // 65536), timeout_s=60),
        all_of(printed(_repeated(b"-" * 65536, _LINE_BYTES // 65536), _LINE_BYTES), ends("EXITED", exit_code=0)),
    ),
    _attack(
        "odd-bytes",
        "Writes every byte, which is not UTF-8.",
        Program(_writes("bytes(range(256)) * 64", 4)),
        all_of(printed(_repeated(_ODD, 4), 4 * len(_ODD)), ends("EXITED", exit_code=0)),
    ),
    _attack(
        "split-characters",
        "Writes characters in halves, each half by itself.",
        Program(
            "for _ in range(200):\n    os.write(1, b'\\xf0\\x9f')\n    os.write(1, b'\\x98\\x80')\n",
        ),
        all_of(printed(_repeated(b"\xf0\x9f\x98\x80", 200), 800), ends("EXITED", exit_code=0)),
    ),
    _attack(
        "terminal-escapes",
        "Writes sequences that steer a terminal.",
        Program(_writes(repr(_ESCAPES), 4)),
        all_of(printed(_repeated(_ESCAPES, 4), 4 * len(_ESCAPES)), ends("EXITED", exit_code=0)),
    ),
    _attack(
        "forged-log",
        "Writes what looks like lines of the daemon's log.",
        Program(
            """
for level in ("error", "info"):
    line = json.dumps({"level": level, "event": "sandbox deleted", "marker": NONCE}) + "\\n"
    os.write(1, line.encode())
    os.write(2, line.encode())
raise SystemExit("\\x1b[2J\\n" + NONCE)
""",
        ),
        all_of(log_is_clean(), ends("EXITED", "EXCEPTION")),
        needs="log",
    ),
    _attack(
        "past-its-limit",
        "Writes more than its output limit.",
        Program(_writes("b'x' * 65536", 512), output_limit_bytes=MIB),
        ends("OUTPUT_LIMIT"),
    ),
    Attack(
        "output.unread",
        Category.OUTPUT,
        "Writes 512 MiB that its client does not read.",
        all_of(memory_below(_GROWTH_BYTES), ends("CANCELLED")),
        act=_unread,
        alone=True,
        needs=frozenset({"memory"}),
    ),
    Attack(
        "output.unread-by-many",
        Category.OUTPUT,
        "Writes 512 MiB to 25 clients of which none reads.",
        all_of(memory_below(2 * _GROWTH_BYTES), ends("CANCELLED")),
        act=_many_readers,
        alone=True,
        needs=frozenset({"memory"}),
    ),
    Attack(
        "output.unary",
        Category.OUTPUT,
        "Writes 16 MiB as the answer to one unary call.",
        finds("answered_bytes", lambda size: isinstance(size, int) and 0 < size <= 2 * MIB, "the answer is bounded"),
        act=_unary,
    ),
)
