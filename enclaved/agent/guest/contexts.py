"""Contexts: persistent interpreters, each with a queue of executions that run one after the other."""

from __future__ import annotations

from .execution import Context
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Optional

    from .children import Child
    from .execution import Execution


class Contexts:
    """Knows contexts by name, and whose turn it is.

    ``start`` and ``take_child`` are set by whoever puts the guest together: they start an execution in the process of
    its context, or in a new one.
    """

    start: Callable[[Execution, Child], None]
    take_child: Callable[[Execution], None]

    def __init__(self) -> None:
        self.by_name: Dict[str, Context] = {}

    def of(self, execution: Execution) -> Optional[Context]:
        """The context of an execution; None where it has a process of its own."""
        return self.by_name.get(execution.context_name or "")

    def admit(self, execution: Execution) -> None:
        """Queues an execution in its context, which is made if there is none of that name."""
        name = execution.context_name or ""
        context = self.by_name.setdefault(name, Context(name))
        context.queue.append(execution)
        self.next_in(context)

    def next_in(self, context: Context) -> None:
        """Starts the next execution of a context that is free."""
        if context.current is not None or not context.queue:
            return
        execution = context.queue.popleft()
        context.current = execution
        if context.child is not None and context.child.silent:  # it closed its socket, so it can take no call
            kill(context.child.pid)
            context.child = None
            context.died = True
        if context.child is None:
            execution.fresh_context = context.died
            self.take_child(execution)
        else:
            self.start(execution, context.child)

    def inhabit(self, execution: Execution, child: Child) -> None:
        """A child is from now on the process of the context of an execution."""
        if execution.context_name is not None:
            context = self.by_name[execution.context_name]
            context.child, child.context = child, context
            context.died = False

    def withdraw(self, execution: Execution) -> None:
        """An execution waits for its turn no more."""
        context = self.of(execution)
        if context is not None and execution in context.queue:
            context.queue.remove(execution)

    def leave(self, execution: Execution) -> None:
        """An execution is over; the next one of its context begins."""
        context = self.of(execution)
        if context is not None:
            if context.current is execution:
                context.current = None
            self.next_in(context)

    def on_exit(self, child: Child, never_ran: bool) -> None:
        """The process of a context has ended, and with it its variables, if it had any."""
        context = child.context
        if context is not None and context.child is child:
            context.child = None
            context.died = child.calls > 0 or not never_ran

    def lives(self, execution: Execution) -> bool:
        """Whether the process of the context of an execution has survived it, as far as is known."""
        context = self.of(execution)
        return context is not None and context.child is not None and execution.status is None
