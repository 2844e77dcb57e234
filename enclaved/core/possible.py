"""What resources an execution can have used at most. A guest's numbers go nowhere before they were held against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from enclaved.model import Phases, ResourceUsage

IO_BYTES_PER_S: Final = 16 * 1024**3
"""More than a program can read or write in a second, also from memory."""
SLACK_S: Final = 1.0
"""What is granted beyond the measured time: clocks, ticks, and what began before."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds the use of resources. ``memory_bytes=0``: not known."""

    lasted_s: float = math.inf
    """How long it has existed, by the daemon's clock."""
    cores: float = math.inf
    """Processors' time that it may use in a second."""
    memory_bytes: int = 0
    pids: int = 0

    def usage(self, claimed: ResourceUsage, spent_s: float = math.inf) -> ResourceUsage:
        """Cuts off what cannot be. ``spent_s``: how long something ran, as the guest measured it."""
        seconds = min(self.lasted_s, spent_s) + SLACK_S
        cpu_s = seconds * self.cores
        user_s = min(claimed.cpu_user_s, cpu_s)
        io_bytes = int(seconds * IO_BYTES_PER_S) if seconds < math.inf else 2**62
        return ResourceUsage(  # not by `replace`, which takes several times as long: this is on the path of every call
            cpu_user_s=user_s,
            cpu_system_s=min(claimed.cpu_system_s, cpu_s - user_s),
            memory_peak_bytes=_at_most(claimed.memory_peak_bytes, self.memory_bytes),
            memory_bytes=_at_most(claimed.memory_bytes, self.memory_bytes),
            pids=_at_most(claimed.pids, self.pids),
            io_read_bytes=min(claimed.io_read_bytes, io_bytes),
            io_write_bytes=min(claimed.io_write_bytes, io_bytes),
        )

    def phases(self, claimed: Phases) -> Phases:
        """Cuts off what cannot be: no phase lasts longer than all of it."""
        most_s = self.lasted_s + SLACK_S
        return Phases(
            min(claimed.queued_s, most_s),
            min(claimed.starting_s, most_s),
            min(claimed.running_s, most_s),
            min(claimed.draining_s, most_s),
        )


def _at_most(claimed: int, most: int) -> int:
    return min(claimed, most) if most else claimed
