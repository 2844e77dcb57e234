"""The daemon as a process: signals, and the pipe of the parent that embeds it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Iterator

from enclaved.config import Settings
from enclaved.daemon._errors import StartError
from enclaved.daemon._serve import Addresses, StopRequest, serve


def run(settings: Settings, embedded_parent_fd: int | None = None) -> None:
    """Runs a daemon in this process until SIGTERM, SIGINT or SIGHUP, or until the parent's pipe ends.

    A second signal cuts calls off that still run. Raises `StartError`.
    """
    asyncio.run(_main(settings, embedded_parent_fd))


async def _main(settings: Settings, parent_fd: int | None) -> None:
    stop = StopRequest()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            loop.add_signal_handler(number, stop.ask, number.name)
    with _watched(parent_fd, stop):
        await serve(settings, stop=stop, ready=_settle, embedded=parent_fd is not None)


def _settle(addresses: Addresses) -> None:
    """Spares the garbage collector what lives as long as the process: modules, classes, descriptors."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _watched(parent_fd: int | None, stop: StopRequest) -> Iterator[None]:
    """Asks for the end when the pipe that only the parent can write to ends, for as long as the block runs."""
    if parent_fd is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def look() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(parent_fd, 1024):
                loop.remove_reader(parent_fd)
                stop.ask("the end of the parent")

    try:
        os.set_blocking(parent_fd, False)
        os.set_inheritable(parent_fd, False)
        loop.add_reader(parent_fd, look)
    except OSError as error:
        raise StartError(f"the parent's file descriptor {parent_fd} cannot be used: {error.strerror}") from error
    try:
        yield
    finally:
        loop.remove_reader(parent_fd)
