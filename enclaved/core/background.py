"""Tasks that outlive the call that started them, all in one place, so that none is lost and all can be ended."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from enclaved.core import identity

log = logging.getLogger(__name__)

T = TypeVar("T")


class Background:
    """Keeps tasks until they are done. A failure is logged; it ends nothing else.

    A task does its work as whoever started it. It inherits nothing else of the call, such as log fields.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a task."""
        task = self._start(work, name)
        task.add_done_callback(_log_failure)
        return task

    def begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts a task whose outcome its starter asks for; perhaps nobody does."""
        task: asyncio.Task[T] = self._start(work, name)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def finish(self, work: Coroutine[Any, Any, Any], name: str) -> Any:
        """Runs work to its end even if the caller is cancelled meanwhile. Raises what the work raises."""
        task = self._start(work, name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)  # the caller will not hear of it
            raise

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        context = contextvars.Context()
        context.run(identity.act_as, identity.current())  # whoever it is for decides what it may do
        task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, deadline_s: float) -> None:
        """Cancels what still runs and waits for it, within a deadline."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=deadline_s)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("background task failed", extra={"task": task.get_name()}, exc_info=task.exception())
