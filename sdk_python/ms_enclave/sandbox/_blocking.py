"""How an object gets a face that blocks: the same methods, run on the background loop of the process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from ms_enclave.sandbox._portal import process_portal

P = ParamSpec("P")
R = TypeVar("R")


class Blocking(Generic[P, R]):
    """A method that blocks where the wrapped object's method of the same name is a coroutine."""

    def __init__(self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Holder, owner: type) -> Callable[P, R]: ...
    def __get__(self, instance: Holder | None, owner: type) -> Self | Callable[P, R]:
        if instance is None:
            return self
        method = getattr(instance.wrapped, self._method.__name__)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = process_portal().run(method(*args, **kwargs))
            return result

        call.__name__, call.__doc__ = self._method.__name__, self._method.__doc__
        return call


class Holder(Protocol):
    """What holds another object, whose methods it shows."""

    @property
    def wrapped(self) -> Any: ...


class Wrapped(Protocol):
    """What can have a blocking face."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


WrappedT = TypeVar("WrappedT", bound=Wrapped)


class Face(Generic[WrappedT]):
    """The blocking face of one object."""

    def __init__(self, wrapped: WrappedT) -> None:
        self.wrapped = wrapped

    def __enter__(self) -> Self:
        process_portal().run(self.wrapped.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process_portal().run(self.wrapped.__aexit__(kind, error, trace))


def iterate(events: AsyncGenerator[R, None]) -> Iterator[R]:
    """Brings the events of a generator, which is closed at once when its reader leaves."""
    portal = process_portal()
    try:
        while True:
            try:
                yield portal.run(anext(events))
            except StopAsyncIteration:
                return
    finally:
        portal.run(events.aclose())
