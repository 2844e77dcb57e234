"""A daemon in a process of its own that may be killed, forked from one that has all modules already."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path

import pytest

from enclaved import log
from enclaved.daemon import Addresses, StopRequest, serve
from enclaved.runtime.docker.driver import DockerRuntime
from enclaved.tools.registry import ToolRegistry
from tests.service.crash import fuse
from tests.service.crash.engine import RemoteRuntime
from tests.service.daemons import settings_in

ROOT = Path(__file__).resolve().parents[3]
LOOK_EVERY_S = 0.02
READY = "ready"
ENGINE = "engine.sock"


@dataclass
class Daemon:
    """A daemon's process. The next one may start when it has ended."""

    folder: Path
    process: BaseProcess = field(repr=False)

    @classmethod
    def start(cls, folder: Path, flags: Mapping[str, str], *, on_docker: bool) -> Daemon:
        """Starts a daemon, over Docker or the engine of the folder, without waiting for it."""
        (folder / READY).unlink(missing_ok=True)
        process = _forks().Process(target=_run, args=(folder, dict(flags), on_docker), daemon=True)
        process.start()
        return cls(folder, process)

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` as long as it runs."""
        return self.process.exitcode

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return (self.folder / READY).exists()

    async def ended(self, patience_s: float) -> int:
        """Waits for its end and returns the exit code."""
        deadline = time.monotonic() + patience_s
        while (code := self.exit_code) is None:
            assert time.monotonic() < deadline, f"it did not end within {patience_s:g} s"
            await asyncio.sleep(LOOK_EVERY_S)
        return code

    def kill(self) -> None:
        """Kills it, if it has not ended."""
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()

    def ask_to_stop(self) -> None:
        """Sends SIGTERM."""
        self.process.terminate()


def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:  # the process to fork from finds modules where this one does
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "sdk_python")]))
        forkserver.ensure_running()
    return context


def _run(folder: Path, flags: dict[str, str], on_docker: bool) -> None:
    with (folder / "daemon.log").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    log.configure("info", "json")
    asyncio.run(_serve(folder, flags, on_docker))


async def _serve(folder: Path, flags: dict[str, str], on_docker: bool) -> None:
    loop, stop = asyncio.get_running_loop(), StopRequest()
    loop.add_signal_handler(signal.SIGTERM, stop.ask, "SIGTERM")
    parent = parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, os._exit, 1)  # whoever runs the tests is gone
    own = fuse.Fuse(folder)
    fuse.fit(own)
    fuse.fit_engine(own, DockerRuntime if on_docker else RemoteRuntime)
    fuse.fit_http_engine(own)
    runtime = None if on_docker else RemoteRuntime(folder / ENGINE, own)

    def ready(_: Addresses) -> None:
        (folder / READY).touch()

    await serve(settings_in(folder, **flags), stop=stop, ready=ready, runtime=runtime, tools=ToolRegistry.built_in())
