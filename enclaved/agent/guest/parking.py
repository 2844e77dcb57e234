"""Parking: everything that runs in the sandbox dies, contexts included. Files stay."""

from __future__ import annotations

import os

from .limits import KILL_DEADLINE_S
from .processes import kill_all

SHORT_ROUNDS = 8  # in which a process that was killed is usually gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set

    from .children import Children
    from .context_control import ContextControl
    from .contexts import Contexts
    from .executions import Executions
    from .link import Link
    from .loop import Loop
    from .nursery import Nursery
    from .observation import Observer
    from .processes import Processes
    from .records import Records
    from .untouched import Places


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
        context_control: ContextControl,
        observer: Observer,
        places: Places,
    ) -> None:
        self.places = places
        self.loop, self.link, self.processes = loop, link, processes
        self.children, self.nursery = children, nursery
        self.records, self.contexts, self.executions = records, contexts, executions
        self.context_control, self.observer = context_control, observer

    def on_park(self, header: Dict[str, Any], payload: bytes) -> None:
        """Stops all executions, those that wait included, and kills what runs."""
        ours = self.observer.child.pid if self.observer.child is not None else 0
        self.observer.dismiss()
        running = self.victims()
        contexts = list(self.contexts.by_name.values())
        self.contexts.by_name.clear()
        for context in contexts:
            self.context_control.close(context, "park", lambda: None)
        for execution in list(self.records.active.values()):
            self.executions.stop(execution, "park")
        answer = {"type": "parked", "number": header["number"]}
        look = header.get("look") is True
        self.next_round(answer, look, self.loop.now() + KILL_DEADLINE_S, running, ours)

    def next_round(self, answer: Dict[str, Any], look: bool, deadline: float, killed: Set[int], ours: int) -> None:
        """Kills what there is, until nothing is left; then the daemon is told. ``ours`` counts as no program."""
        self.children.reap()
        self.children.read_spawning()
        victims = self.victims()
        if not victims and not self.records.active and not self.employed():
            answer.update(killed=len(killed - {ours}), contexts=len(self.contexts.by_name))
            found = self.places.report() if look else None
            self.link.send(answer if found is None else dict(answer, untouched=found))
        elif self.loop.now() > deadline:
            os._exit(70)
        else:
            kill_all(victims, self.victims)
            answer["rounds"] = rounds = answer.get("rounds", 0) + 1
            pause_s = 0.0005 if rounds < SHORT_ROUNDS else 0.002
            self.loop.after(pause_s, lambda: self.next_round(answer, look, deadline, killed | victims, ours))

    def employed(self) -> Set[int]:
        """Children that have been given something to do, and may not have become the user yet."""
        idle = {child.pid for child in self.nursery.standby} | {child.pid for child in self.children.spawning}
        return set(self.children.by_pid) - idle

    def victims(self) -> Set[int]:
        """Everything of the user's but the standby children."""
        spared = {1, os.getpid()} | set(self.children.helpers) | {child.pid for child in self.nursery.standby}
        spared |= {child.pid for child in self.children.spawning}
        return self.processes.users_among(self.processes.listed() - spared)
