"""What systemd is told: ready, alive, reloading, stopping."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager, if one asked for it with ``NOTIFY_SOCKET``."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_us = 0
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._watchdog_us = int(environ.get("WATCHDOG_USEC", "0"))

    def tell(self, message: str) -> None:
        """Sends a message such as ``READY=1``. One that cannot be sent is logged."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.setblocking(False)
                sock.sendto(message.encode(), address)
            except OSError as error:
                _log.warning("the service manager cannot be told", extra={"said": message, "why": error.strerror})

    def reloading(self) -> None:
        """Says that a reload begins; ``READY=1`` ends it."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def keep_alive(self) -> None:
        """Says twice per watchdog interval that the event loop still turns; returns at once without a watchdog."""
        while self._watchdog_us and self._address:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_us / 2_000_000)
