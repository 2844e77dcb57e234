"""Parking: everything that runs in the sandbox dies, contexts included. Files stay."""

from __future__ import annotations

import os
import time

from .limits import KILL_DEADLINE_S
from .processes import kill_all, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set

    from .children import Children
    from .contexts import Contexts
    from .executions import Executions
    from .link import Link
    from .loop import Loop
    from .nursery import Nursery
    from .processes import Processes
    from .records import Records


class Parking:
    """Answers `park` frames."""

    def __init__(
        self,
        loop: Loop,
        link: Link,
        processes: Processes,
        children: Children,
        nursery: Nursery,
        records: Records,
        contexts: Contexts,
        executions: Executions,
    ) -> None:
        self.loop, self.link, self.processes = loop, link, processes
        self.children, self.nursery = children, nursery
        self.records, self.contexts, self.executions = records, contexts, executions

    def on_park(self, header: Dict[str, Any], payload: bytes) -> None:
        """Stops all executions, those that wait included, and kills what runs."""
        running = self.victims()
        for context in self.contexts.by_name.values():
            for execution in list(context.queue):
                self.executions.stop(execution, "park")
        for execution in list(self.records.active.values()):
            self.executions.stop(execution, "park")
        self.contexts.by_name.clear()
        self.next_round(header["number"], time.monotonic() + KILL_DEADLINE_S, running)

    def next_round(self, number: int, deadline: float, killed: Set[int]) -> None:
        """Kills what there is, until nothing is left; then the daemon is told."""
        self.children.reap()
        self.children.read_spawning()
        victims = self.victims()
        if not victims and not self.records.active:
            self.link.send({"type": "parked", "number": number, "killed": len(killed)})
        elif time.monotonic() > deadline:
            os._exit(70)
        else:
            kill_all(victims, self.victims)
            self.loop.after(0.002, lambda: self.next_round(number, deadline, killed | victims))

    def victims(self) -> Set[int]:
        """Everything of the user's but the standby children."""
        spared = {1, os.getpid()} | set(self.children.helpers) | {child.pid for child in self.nursery.standby}
        spared |= {child.pid for child in self.children.spawning}
        victims = self.processes.listed() - spared
        victims = {pid for pid in victims if self.processes.is_users(pid)}
        return {pid for pid in victims if stat(pid) is not None}
