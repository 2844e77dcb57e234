"""What a soak measures of the daemon's process, and what it makes of that."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import leaks

MIB = 1024 * 1024
ENGINE_PID_FILE = Path("/run/docker.pid")


@dataclass(frozen=True)
class Sample:
    """The daemon's process after so many sandboxes."""

    sandboxes: int
    seconds: float
    memory_bytes: int
    descriptors: int
    threads: int
    engine_memory_bytes: int
    """Of the engine's process, for information; 0 where it cannot be seen."""


def sample(pid: int, sandboxes: int, began: float) -> Sample:
    """Looks at a daemon."""
    return Sample(
        sandboxes,
        time.monotonic() - began,
        leaks.resident_bytes(pid),
        len(leaks.descriptors(pid)),
        leaks.threads(pid),
        _engine_memory_bytes(),
    )


def slope_mib_per_1000(samples: Sequence[Sample]) -> float:
    """How much memory grows with each 1,000 sandboxes, by least squares."""
    if len(samples) < 3:
        return 0.0
    found = statistics.linear_regression([s.sandboxes for s in samples], [s.memory_bytes for s in samples])
    return float(found.slope) * 1000 / MIB


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float, float]:
    """The median, the 95th and 99th percentile and the most, in milliseconds."""
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95, 0.99, 1.0)]
    return at[0] * 1000, at[1] * 1000, at[2] * 1000, at[3] * 1000


def _engine_memory_bytes() -> int:
    try:
        return leaks.resident_bytes(int(ENGINE_PID_FILE.read_text()))
    except (OSError, ValueError):
        return 0
