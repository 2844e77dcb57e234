"""The executions that the guest knows: those that wait or run, and the records of those that have ended."""

from __future__ import annotations

import collections
import time

from .limits import EXECUTIONS_MAX, RECORD_KEPT_S, RECORD_SETTLED_S, RECORDS_EXPIRE_EVERY_S, RECORDS_KEPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, Dict, Optional

    from .execution import Execution
    from .link import Link
    from .loop import Loop, Timer


class Records:
    """Knows executions by name, and forgets those that have ended: by age, or by number if nobody needs them.

    None grows old while there is no daemon: the next one must hear how each ended, or it could not tell. By number go
    only those without output that somebody may still want, and not before the daemon has had the time to write down
    how they ended.

    ``on_forgotten`` is set by whoever puts the guest together; it releases what else is kept of an execution.
    """

    on_forgotten: Callable[[Execution], None]

    def __init__(self, loop: Loop, link: Link) -> None:
        self.loop, self.link = loop, link
        self.by_name: Dict[str, Execution] = {}
        self.active: Dict[str, Execution] = {}  # may have processes
        self.ended: Deque[Execution] = collections.deque()  # oldest first
        self.expiry: Optional[Timer] = None

    def add(self, execution: Execution) -> None:
        """Keeps the record of an execution that has ended, for a while."""
        self.ended.append(execution)
        if len(self.ended) > RECORDS_KEPT:
            settled = next((other for other in self.ended if self.is_settled(other)), None)
            if settled is not None:
                self.forget(settled)
        if self.expiry is None:
            self.expiry = self.loop.after(RECORD_KEPT_S, self.expire)

    def is_settled(self, execution: Execution) -> bool:
        """Whether nobody needs the record of an execution that has ended."""
        if execution.readers or not (execution.may_go or not execution.journal.size):
            return False
        since = self.link.present_since(execution.times["ended"])
        return since is not None and since + RECORD_SETTLED_S <= time.monotonic()

    def has_place(self) -> bool:
        """Whether one more execution can be known. Where there are too many, one that gives way first is forgotten."""
        if len(self.by_name) < EXECUTIONS_MAX:
            return True
        idle = [execution for execution in self.ended if not execution.readers]
        for execution in idle:
            if execution.may_go or not execution.journal.size:
                self.forget(execution)
                return True
        for execution in idle:
            if execution.journal.keep_last_bytes is not None:
                self.forget(execution)
                return True
        return False

    def expire(self) -> None:
        """Forgets executions whose time is over, unless somebody still reads them."""
        for execution in list(self.ended):
            since = self.link.present_since(execution.times["ended"])
            if since is not None and since + RECORD_KEPT_S <= time.monotonic() and not execution.readers:
                self.forget(execution)
        self.expiry = self.loop.after(RECORDS_EXPIRE_EVERY_S, self.expire) if self.ended else None

    def forget(self, execution: Execution) -> None:
        """Releases the record and the output of an execution that has ended."""
        if self.by_name.get(execution.name) is execution:
            del self.by_name[execution.name]
            if execution in self.ended:
                self.ended.remove(execution)
            for reader in list(execution.readers.values()):
                self.link.send({"type": "unknown", "execution": execution.name, "reader": reader.name})
            self.on_forgotten(execution)
