"""Prunes where the settings say that daemons keep things, and where programs make the daemons that they embed."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from enclaved.config import Settings
from enclaved.core.prune import Prune, Pruned
from enclaved.errors import EnclaveError
from enclaved.runtime.base import Runtime
from enclaved.runtime.docker.driver import DockerRuntime

DOCTORS: Final = Path("/tmp")  # noqa: S108 - socket paths are short; the doctor makes a directory of its own in it


async def prune(
    settings: Settings, *, dry_run: bool = False, everything: bool = False, runtime: Runtime | None = None
) -> Pruned:
    """Removes what daemons that are gone left; a dry run changes nothing. ``runtime`` replaces Docker, for tests.

    Raises `EngineUnavailable` if the engine does not answer; then nothing was changed.
    """
    engine = runtime or DockerRuntime(settings.engine.url)
    sockets = [text.removeprefix("unix:") for text in (settings.listen.unix, settings.listen.http)]
    try:
        pruning = Prune(engine, dry_run=dry_run, everything=everything)
        found = [Path(text) for text in sockets if text.startswith("/")]
        return await pruning.run(Path(settings.state.dir), _bases(), found, DOCTORS)
    finally:
        await engine.close()


async def prune_doctors(settings: Settings) -> None:
    """Removes what doctors left that were killed together with their daemons, as far as the engine answers."""
    engine = DockerRuntime(settings.engine.url)
    try:
        with suppress(EnclaveError):
            await Prune(engine, dry_run=False).run_doctors(DOCTORS)
    finally:
        await engine.close()


def _bases() -> list[Path]:
    """Where the SDK makes directories for daemons of its own."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    own = f"ms-enclave-{os.geteuid()}"
    places = [Path(runtime_dir, "ms-enclave")] if runtime_dir else []
    return [*places, Path(tempfile.gettempdir(), own), Path("/tmp", own)]  # noqa: S108 - as the SDK does
