"""The end of a daemon: who asks for it, and what becomes of the calls that run."""

from __future__ import annotations

import asyncio
import logging

from enclaved.services import Calls, Health

_log = logging.getLogger(__name__)


class StopRequest:
    """The wish that a daemon stops; a second one says not to wait for calls."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def ask(self, why: str) -> None:
        """Asks the daemon to stop, or, if it has been asked, to hurry."""
        if self.asked.is_set():
            self.hurried.set()
        _log.info("stop requested", extra={"by": why, "hurried": self.hurried.is_set()})
        self.asked.set()


async def drain(calls: Calls, health: Health, stop: StopRequest, grace_s: float) -> None:
    """Refuses new calls and lets those that run finish, within the grace or until somebody hurries."""
    calls.close()
    await health.set_serving(False)
    _log.info("draining", extra={"calls": calls.active, "grace_s": grace_s})
    idle, hurried = asyncio.ensure_future(calls.wait_idle()), asyncio.ensure_future(stop.hurried.wait())
    await asyncio.wait((idle, hurried), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    for waiting in (idle, hurried):
        waiting.cancel()
    if calls.active:
        _log.warning("calls outlast the grace", extra={"calls": calls.active})
