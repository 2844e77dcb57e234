"""The doctor's own daemon, as a child process: ``python -m enclaved.doctor.daemon_child FILE FLAGS DIRECTORY``.

It serves with the operator's configuration, but for the flags that give it places of its own, and without the
operator's pools. It ends with its standard input, so that it never outlives the doctor; then it removes the doctor's
directory, which a doctor that was killed could not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded

from enclaved import daemon, log
from enclaved.config import ConfigError, Settings, load
from enclaved.doctor.own_daemon import READY


def main(arguments: Sequence[str]) -> int:
    """Serves until standard input ends. Returns the exit code."""
    file, flags, directory = arguments
    try:
        settings = load(Path(file) if file else None, flags=json.loads(flags)).settings
        log.configure(settings.log.level, settings.log.format)
        if asyncio.run(_serve(settings.model_copy(update={"pools": (), "bad_pools": ()}))):
            shutil.rmtree(directory, ignore_errors=True)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    except daemon.StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> bool:
    """Serves until it is to end; says whether that is because standard input did."""
    stop, loop = daemon.StopRequest(), asyncio.get_running_loop()
    has_ended = False

    def look() -> None:
        nonlocal has_ended
        with contextlib.suppress(BlockingIOError):
            if not os.read(0, 1024):
                has_ended = True
                loop.remove_reader(0)
                stop.ask("the end of the doctor")

    def ready(_: daemon.Addresses) -> None:
        with contextlib.suppress(BrokenPipeError):  # then the doctor was killed, and this ends, too
            print(READY, flush=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask, number.name)
    os.set_blocking(0, False)
    loop.add_reader(0, look)
    await daemon.serve(settings, stop=stop, ready=ready)
    return has_ended


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
