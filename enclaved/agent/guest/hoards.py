"""What programs could take from everybody on the machine, since the kernel has no limit of it for one sandbox.

It counts pseudo-terminals for the whole machine, and what sockets of netlink hold is nobody's memory. Programs may have
some of both. Where they have too many twice in a row, they hold on to them, and everything that runs is killed.
"""

from __future__ import annotations

import os

from .limits import HOARDS_EVERY_S, HOARDS_IDLE_S, NETLINK_SOCKETS_MAX, PSEUDO_TERMINALS_MAX
from .processes import kill_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .contexts import Contexts
    from .executions import Executions
    from .loop import Loop, Timer
    from .parking import Parking
    from .records import Records


class Hoards:
    """Looks from time to time, for as long as anything of the user's runs."""

    def __init__(
        self, loop: Loop, records: Records, contexts: Contexts, executions: Executions, parking: Parking
    ) -> None:
        self.loop, self.records, self.contexts = loop, records, contexts
        self.executions, self.parking = executions, parking
        self.timer: Optional[Timer] = None
        self.was_one = False  # at the last look

    def begin(self) -> None:
        """Something of the user's runs from now on."""
        if self.timer is None and self.parking.processes.owns_namespace:
            self.timer = self.loop.after(HOARDS_EVERY_S, self.look)

    def look(self) -> None:
        """Kills what runs where too much is held for the second time, and looks again if there is anything."""
        self.timer = None
        why = hoard()
        if why and self.was_one:
            self.end(why)
        self.was_one = bool(why)
        if self.records.active:
            self.timer = self.loop.after(HOARDS_EVERY_S, self.look)
        elif self.contexts.by_name:
            self.timer = self.loop.after(HOARDS_IDLE_S, self.look)

    def end(self, why: str) -> None:
        """Ends all programs and contexts: of whom the things are, only the user could tell."""
        for execution in list(self.records.active.values()):
            if execution.state == "running" and execution.cause is None:
                execution.reason = why
                self.executions.stop(execution, "hoard")
        kill_all(self.parking.victims(), self.parking.victims)


def hoard() -> str:
    """What the sandbox holds too much of, in words; empty if nothing."""
    for name, held, most in (
        ("pseudo-terminals", terminals(), PSEUDO_TERMINALS_MAX),
        ("netlink sockets", netlink_sockets(), NETLINK_SOCKETS_MAX),
    ):
        if held > most:
            return "its sandbox held %d %s, of which it may have %d" % (held, name, most)
    return ""


def terminals() -> int:
    """How many pseudo-terminals there are; 0 where that cannot be seen."""
    try:
        return len(os.listdir("/dev/pts"))
    except OSError:
        return 0


def netlink_sockets() -> int:
    """How many sockets of netlink there are; 0 where that cannot be seen."""
    try:
        with open("/proc/self/net/protocols", "rb") as table:
            for line in table:
                if line.startswith(b"NETLINK "):
                    return int(line.split()[2])
    except (OSError, ValueError, IndexError):
        pass
    return 0
