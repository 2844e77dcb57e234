"""An engine with gVisor beside its own runtime, and a daemon that has it as a runtime class."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SCRIPTS
from tests.integration.engine.private import PrivateEngine, private_engine
from tests.integration.failures.ground import DaemonProcess, Ground

CONFIGURATION = """
[[runtime_classes]]
name = "gvisor"
engine_runtime = "runsc"

[[runtime_classes]]
name = "tight"
engine_runtime = "runsc"
pids_extra = 200

[[runtime_classes]]
name = "elsewhere"
engine_runtime = "runtime-that-is-not-there"

[daemon]
reap_every_s = 0.5
keep_sandboxes_on_stop = true
"""


@dataclass
class Site:
    """The daemon, its engine and where they are."""

    ground: Ground
    engine: PrivateEngine
    flags: tuple[str, ...]
    daemon: DaemonProcess

    async def next_daemon(self) -> None:
        """Kills the daemon and starts another one on its state directory."""
        self.daemon.send(signal.SIGKILL)
        await self.daemon.ended()
        self.daemon.check_log()
        self.daemon = await self.ground.daemon(*self.flags)


@pytest.fixture(scope="session")
def runsc() -> Path:
    """gVisor, which Debian has; it is installed if need be."""
    if shutil.which("runsc") is None:
        done = subprocess.run(
            [sys.executable, SCRIPTS / "_debian.py", "runsc"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.fail(f"gVisor cannot be installed: {done.stderr.strip()}", pytrace=False)
    return Path(shutil.which("runsc") or "")


@pytest.fixture(scope="package")
def site(default_image: str, runsc: Path) -> Iterator[Site]:
    """See `Site`. At the end nothing of it is left."""
    ground = Ground()
    with asyncio.Runner() as runner:
        stack = runner.run(AsyncExitStack().__aenter__())
        try:
            made = runner.run(_made(stack, ground, runsc))
            yield made
            made.daemon.check_log()
        finally:
            ground.clear()
            runner.run(stack.aclose())


async def _made(stack: AsyncExitStack, ground: Ground, runsc: Path) -> Site:
    engine = await stack.enter_async_context(private_engine())
    # Without a network card: its own network stack would not pass the host's packet filters.
    runtimes = {"runsc": {"path": str(runsc), "runtimeArgs": ["--network=none", "--host-uds=open"]}}
    (engine.folder / "daemon.json").write_text(json.dumps({"runtimes": runtimes}))
    await engine.restart()
    file = ground.folder / "config.toml"
    file.write_text(CONFIGURATION)
    flags = ("--config", str(file), "--engine-url", engine.url)
    return Site(ground, engine, flags, await ground.daemon(*flags))
