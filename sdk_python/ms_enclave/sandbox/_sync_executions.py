"""Executions and contexts with methods that block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ms_enclave._model import Channel, ContextInfo, Event, ExecutionOptions, Finished
from ms_enclave.sandbox import contexts, executions
from ms_enclave.sandbox._blocking import Blocking, Face, iterate
from ms_enclave.sandbox._portal import process_portal


class Execution(Face[executions.Execution]):
    """One run of a tool; see `ms_enclave.sandbox.Execution`. ``for event in execution`` brings what happens."""

    wait = Blocking(executions.Execution.wait)
    info = Blocking(executions.Execution.info)
    write = Blocking(executions.Execution.write)
    signal = Blocking(executions.Execution.signal)
    cancel = Blocking(executions.Execution.cancel)
    detach = Blocking(executions.Execution.detach)

    @property
    def id(self) -> str:
        """Its id."""
        return self.wrapped.id

    @property
    def sandbox_id(self) -> str:
        """The sandbox that it runs in."""
        return self.wrapped.sandbox_id

    @property
    def finished(self) -> Finished | None:
        """How it ended, as far as this object saw it."""
        return self.wrapped.finished

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Returns the next event. Leaving the loop kills nothing."""

        async def following() -> Event | None:
            return await anext(self.wrapped, None)

        event = process_portal().run(following())
        if event is None:
            raise StopIteration
        return event

    def end_input(self) -> None:
        """Says that no more input comes."""
        _on_loop(self.wrapped.end_input)

    def resize(self, rows: int, columns: int) -> None:
        """Tells it that its terminal has another size."""
        _on_loop(self.wrapped.resize, rows, columns)

    def acknowledge(self, offsets: Mapping[Channel, int]) -> None:
        """Releases output below these offsets; from now on only this does."""
        _on_loop(self.wrapped.acknowledge, offsets)

    def attach(
        self,
        offsets: Mapping[Channel, int] | None = None,
        *,
        observe: bool = True,
        stats_interval: float | None = None,
    ) -> Execution:
        """Returns another object for it, which follows from ``offsets`` on; see the one with asyncio."""
        return Execution(self.wrapped.attach(offsets, observe=observe, stats_interval=stats_interval))


class Contexts:
    """The contexts of one sandbox; see `ms_enclave.sandbox.contexts.Contexts`."""

    def __init__(self, wrapped: contexts.Contexts) -> None:
        self.wrapped = wrapped

    def open(self, name: str) -> Context:
        """Opens a context; leaves an open one alone."""
        return Context(process_portal().run(self.wrapped.open(name)))

    def list(self) -> list[Context]:
        """Lists those that are open, by name."""
        return [Context(context) for context in process_portal().run(self.wrapped.list())]

    def close(self, name: str) -> None:
        """Ends a context at once."""
        process_portal().run(self.wrapped.close(name))

    def reset(self, name: str) -> Context:
        """Gives a context a new interpreter."""
        return Context(process_portal().run(self.wrapped.reset(name)))


class Context(Face[contexts.Context]):
    """One context; see `ms_enclave.sandbox.contexts.Context`. ``with`` closes it at the end."""

    execute = Blocking(contexts.Context.execute)
    reset = Blocking(contexts.Context.reset)
    close = Blocking(contexts.Context.close)

    @property
    def name(self) -> str:
        """Its name."""
        return self.wrapped.name

    @property
    def info(self) -> ContextInfo:
        """How it was when it was last asked for."""
        return self.wrapped.info

    def stream(
        self, code: str, timeout: float | None = None, *, options: ExecutionOptions | None = None
    ) -> Iterator[Event]:
        """Runs Python in it and yields what happens."""
        return iterate(self.wrapped.stream(code, timeout, options=options))

    def start_execution(
        self, code: str, timeout: float | None = None, *, options: ExecutionOptions | None = None
    ) -> Execution:
        """Starts Python in it."""
        return Execution(process_portal().run(self.wrapped.start_execution(code, timeout, options=options)))


def _on_loop(method: Any, *arguments: object) -> None:
    """Calls what has to be called in an event loop."""

    async def calling() -> None:
        method(*arguments)

    process_portal().run(calling())
