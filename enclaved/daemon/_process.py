"""The daemon as a process: signals, and the pipe of the parent that embeds it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Final

from enclaved.config import Settings
from enclaved.daemon._errors import StartError
from enclaved.daemon._reload import Reloads
from enclaved.daemon._serve import Addresses, serve
from enclaved.daemon._stop import StopRequest

FILES_MAX: Final = 65_536


def run(
    settings: Settings, embedded_parent_fd: int | None, reread: Callable[[], Settings], *, working_dir: str = ""
) -> None:
    """Runs a daemon in this process until SIGTERM or SIGINT, or until the parent's pipe ends.

    A second signal cuts calls off that still run. SIGHUP has the configuration read again with ``reread``; to an
    embedded daemon, and to one that a terminal started, it says that whoever started it is gone: they stop.
    ``working_dir`` is where the program works that embeds it. Raises `StartError`.
    """
    _raise_file_limit()
    asyncio.run(_main(settings, embedded_parent_fd, reread, working_dir))


def _raise_file_limit() -> None:
    """Lets this process open as many files as it may: each client and each sandbox takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _main(settings: Settings, parent_fd: int | None, reread: Callable[[], Settings], working_dir: str) -> None:
    stop, reloads = StopRequest(), Reloads(reread)
    loop = asyncio.get_running_loop()
    has_owner = parent_fd is not None or os.isatty(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            ask = reloads.ask if number is signal.SIGHUP and not has_owner else stop.ask
            loop.add_signal_handler(number, ask, number.name)
    with _watched(parent_fd, stop):
        await serve(
            settings, stop=stop, ready=_settle, embedded=parent_fd is not None, reloads=reloads, working_dir=working_dir
        )


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
