"""Programs that neither write nor take input."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .execution import Execution
    from .loop import Loop


class Idle:
    """Notices that a program has been idle for too long.

    ``on_idle`` is set by whoever puts the guest together; it ends the program. Time in which a program waits for room
    in its journal does not count.
    """

    on_idle: Callable[[Execution], None]

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def begin(self, execution: Execution) -> None:
        """Watches a program that starts to run, if it may not be idle for ever."""
        execution.idle_since = self.loop.now()
        if execution.idle_timeout_s > 0:
            self.look_again(execution, execution.idle_timeout_s)

    def look_again(self, execution: Execution, delay_s: float) -> None:
        """Looks when the limit could be reached at the earliest; what happens until then only moves a number."""
        execution.idle_timer = self.loop.after(delay_s, lambda: self.look(execution))

    def look(self, execution: Execution) -> None:
        """Ends a program that has been idle for too long."""
        if execution.state != "running":
            return
        left_s = execution.idle_timeout_s
        if not execution.paused:
            left_s += execution.idle_since - self.loop.now()
        if left_s > 0:
            self.look_again(execution, left_s)
        else:
            self.on_idle(execution)

    def end(self, execution: Execution) -> None:
        """The program runs no more."""
        self.loop.cancel(execution.idle_timer)
