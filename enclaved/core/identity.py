"""As whom the work at hand is done. The edge says it once for each call; tasks that a call begins inherit it."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from enclaved.model import LOCAL, Identity

_current: contextvars.ContextVar[Identity] = contextvars.ContextVar("enclaved_identity", default=LOCAL)


def current() -> Identity:
    """Who calls."""
    return _current.get()


def act_as(identity: Identity) -> None:
    """Does the rest of this task, and of the tasks that it begins, as somebody."""
    _current.set(identity)


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Does what is in the block as somebody."""
    token = _current.set(identity)
    try:
        yield
    finally:
        _current.reset(token)
