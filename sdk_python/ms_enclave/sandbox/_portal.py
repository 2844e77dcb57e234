"""Runs coroutines for callers that have no event loop, on one background loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ms_enclave._forks import at_fork

T = TypeVar("T")

CANCEL_S: Final = 10.0
"""How long an interrupted caller waits until what it started has been cancelled as well."""


class Portal:
    """A thread with an event loop, started when it is first needed. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        atexit.register(self.close)
        at_fork(after_in_child=self._forget)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end and returns its result or raises its error.

        An interrupt (Ctrl-C) cancels it, waits a few seconds for its cleaning up, and goes on. Must not be called
        from a coroutine on the portal's own loop, for which it would wait for ever: raises ``RuntimeError`` there.
        """
        try:
            loop = self._running_loop()
        except BaseException:  # an interrupt, while the thread starts
            coroutine.close()
            raise
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking call was made from within the loop that serves it; use the async classes")
        ended = threading.Event()

        async def guarded() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(guarded(), loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(CANCEL_S)
            raise

    def close(self) -> None:
        """Cancels what runs and ends the thread. A later `run` starts another."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
            stop = self._stop
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(stop.set)
            thread.join(CANCEL_S)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                ready = threading.Event()
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._serve(ready)), name="ms-enclave-sync", daemon=True
                )
                self._thread.start()
                ready.wait(CANCEL_S)
            if self._loop is None:
                raise RuntimeError("the background event loop could not be started")
            return self._loop

    async def _serve(self, ready: threading.Event) -> None:
        self._stop = stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        ready.set()
        await stop.wait()

    def _forget(self) -> None:
        """In a forked child: the thread did not come along."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


@functools.cache
def process_portal() -> Portal:
    """Returns the portal of this process."""
    return Portal()
