"""Contexts: persistent interpreters, each with a queue of executions that run one after the other."""

from __future__ import annotations

from .execution import Context
from .limits import DEFAULT_CONTEXT
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict

    from .children import Child
    from .execution import Execution


class Contexts:
    """Knows contexts by name, and whose turn it is.

    ``start``, ``take_child`` and ``refuse`` are set by whoever puts the guest together: they start an execution in the
    process of its context or in a new one, or say that it never ran.
    """

    start: Callable[[Execution, Child], None]
    take_child: Callable[[Execution], None]
    refuse: Callable[[Execution, str, str], None]

    def __init__(self) -> None:
        self.by_name: Dict[str, Context] = {}

    def add(self, name: str) -> Context:
        """Makes a context. None of that name may be open."""
        self.by_name[name] = Context(name)
        return self.by_name[name]

    def drop(self, context: Context) -> None:
        """Gives up the name of a context, if it has it still."""
        if self.by_name.get(context.name) is context:
            del self.by_name[context.name]

    def named(self) -> int:
        """How many contexts are open beside the default one, which always has a place."""
        return len(self.by_name) - (DEFAULT_CONTEXT in self.by_name)

    def admit(self, execution: Execution) -> None:
        """Queues an execution in its context. The default one opens by itself; others must have been opened."""
        name = execution.context_name or ""
        context = self.by_name.get(name)
        if context is None and name != DEFAULT_CONTEXT:
            self.refuse(execution, "no_context", "no context %r is open in this sandbox" % name)
            return
        context = context or self.add(name)
        execution.context = context
        context.queue.append(execution)
        self.next_in(context)

    def next_in(self, context: Context) -> None:
        """Starts the next execution of a context that is free."""
        if context.current is not None or context.opening is not None or not context.queue:
            return
        execution = context.queue.popleft()
        context.current = execution
        if context.child is not None and not context.is_alive():  # it closed its socket, or talks nonsense through it
            kill(context.child.pid)
            context.child = None
            context.died = True
        execution.fresh_context = context.died
        if context.child is None:
            self.take_child(execution)
        else:
            self.start(execution, context.child)

    def inhabit(self, execution: Execution, child: Child) -> None:
        """A child is from now on the process of the context of an execution."""
        if execution.context is not None:
            execution.context.settle(child)
            execution.context.died = False

    def withdraw(self, execution: Execution) -> None:
        """An execution waits for its turn no more."""
        context = execution.context
        if context is not None and execution in context.queue:
            context.queue.remove(execution)

    def leave(self, execution: Execution) -> None:
        """An execution is over; the next one of its context begins."""
        context = execution.context
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
        context = execution.context
        return context is not None and not context.closed and context.child is not None and execution.status is None
