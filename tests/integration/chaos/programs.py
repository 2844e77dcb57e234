"""Programs whose every byte and whose end are known before they run."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

STDOUT, STDERR = 1, 2
TIMEOUT_S: Final = 8.0
_STEPS = 120

_WRITER = """
import os, random, sys, time
with open("runs", "a") as runs:
    runs.write({name!r} + "\\n")
chance = random.Random({seed})
for step in range({steps}):
    channel = 1 if chance.random() < 0.8 else 2
    data = chance.randbytes(chance.randrange(1, {most_bytes}))
    while data:
        data = data[os.write(channel, data):]
    time.sleep({pause_s})
{end}
"""
_ECHO = """
import sys
with open("runs", "a") as runs:
    runs.write({name!r} + "\\n")
for line in sys.stdin:
    sys.stdout.write(line.upper())
    sys.stdout.flush()
"""
_ENDS: Final[Mapping[str, tuple[str, str, int | None, int | None]]] = {
    "success": ("", "EXITED", 0, None),
    "exit code": ("os._exit(3)", "EXITED", 3, None),
    "exit code of a killed program": ("os._exit(137)", "EXITED", 137, None),
    "signal": ("os.kill(os.getpid(), 9)", "SIGNALED", None, 9),
    "timeout": ("time.sleep(600)", "TIMEOUT", None, None),
}


@dataclass(frozen=True)
class Program:
    """One program, what it writes and how it ends."""

    name: str
    kind: str
    code: str
    output: Mapping[int, bytes]
    """By channel; a channel that is not named is not compared."""
    verdict: str
    exit_code: int | None
    signal: int | None
    stdin: bytes = b""
    timeout_s: float = 120.0


def program(name: str, chance: random.Random) -> Program:
    """Chooses a program."""
    kind = chance.choice([*_ENDS, "echo"])
    if kind == "echo":
        lines = [f"line {number} of {name} {'x' * chance.randrange(80)}" for number in range(300)]
        text = "".join(f"{line}\n" for line in lines)
        code = _ECHO.format(name=name)
        return Program(name, kind, code, {1: text.upper().encode()}, "EXITED", 0, None, text.encode())
    end, verdict, exit_code, signal = _ENDS[kind]
    seed, most_bytes = chance.randrange(2**32), chance.choice([40, 4_000, 40_000])
    pause_s = chance.choice([0.0, 0.005, 0.02])
    code = _WRITER.format(name=name, seed=seed, steps=_STEPS, most_bytes=most_bytes, pause_s=pause_s, end=end)
    output = _written(seed, most_bytes)
    compared = {STDOUT: output[STDOUT]} if verdict == "TIMEOUT" else output  # an interrupted program says so itself
    timeout_s = TIMEOUT_S + 2 * _STEPS * pause_s if verdict == "TIMEOUT" else 120.0
    return Program(name, kind, code, compared, verdict, exit_code, signal, timeout_s=timeout_s)


def _written(seed: int, most_bytes: int) -> dict[int, bytes]:
    chance, output = random.Random(seed), {STDOUT: bytearray(), STDERR: bytearray()}
    for _ in range(_STEPS):
        channel = STDOUT if chance.random() < 0.8 else STDERR
        output[channel] += chance.randbytes(chance.randrange(1, most_bytes))
    return {channel: bytes(data) for channel, data in output.items()}
