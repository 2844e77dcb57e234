"""Starts a daemon for the doctor alone: own directory, sockets and key; the operator's engine, image and profile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from enclaved.config import Settings
from enclaved.doctor.connection import Daemon, Stubs, channel_to

READY: Final = "ready"
"""What the child prints, as a line, once it serves."""
START_S: Final = 120.0
"""How long it may take to serve; it looks at its profile first."""
STOP_S: Final = 60.0
UIDS: Final = 256
"""How many user ids it takes, from the end of the configured range: an operator's daemon begins at its start."""
HTTP_KEYS_VARIABLE: Final = "ENCLAVED_HTTP_API_KEYS"
_LOG_BYTES_SHOWN: Final = 4096


class DaemonFailed(Exception):
    """The doctor's daemon did not start; the text is what it said."""


@asynccontextmanager
async def private_directory() -> AsyncIterator[Path]:
    """Makes a directory with a short name, since sockets lie in it; removes it at the end."""
    # `enclaved.core.ownership` knows the name by which the next doctor finds it.
    # Everybody may pass, so that an escape would find what waits for it; what is private lies deeper.
    directory = Path(tempfile.mkdtemp(prefix=f"mse-doctor-{os.getpid()}-", dir="/tmp"))
    try:
        directory.chmod(0o711)
        yield directory
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


@asynccontextmanager
async def own_daemon(directory: Path, settings: Settings, file: Path | None) -> AsyncIterator[Daemon]:
    """Runs a daemon with the configuration of ``file`` for as long as the block runs.

    Raises `DaemonFailed` with what it said. At the end it removes its sandboxes; it also ends, and does so, when this
    process is killed.
    """
    private = directory / "d"
    private.mkdir(mode=0o700)
    key, log = secrets.token_urlsafe(32), private / "daemon.log"
    flags = _flags(private, settings)
    digest = hashlib.sha256(key.encode()).hexdigest()
    environment = {**os.environ, **_python_path(), HTTP_KEYS_VARIABLE: f"sha256:{digest}"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "enclaved.doctor.daemon_child"),
            *(str(file or ""), json.dumps(flags), str(directory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    try:
        await _until_ready(process, log)
        async with channel_to(f"unix:{private / 'g.sock'}", {}) as channel:
            yield Daemon(
                channel,
                Stubs(channel),
                socket_path=private / "g.sock",
                http_socket=private / "h.sock",
                http_key=key,
                pid=process.pid,
                log=log,
            )
    finally:
        await _end(process)


def _flags(private: Path, settings: Settings) -> dict[str, str]:
    """Returns the settings that it has of its own, as texts of flags."""
    sandbox = settings.sandbox
    taken = min(UIDS, sandbox.uid_count)
    return {
        "state.dir": str(private / "s"),
        "listen.unix": str(private / "g.sock"),
        "listen.unix_mode": "0600",
        "listen.unix_group": "",
        "listen.http": f"unix:{private / 'h.sock'}",
        "listen.tcp": "",
        "listen.metrics": "",
        "listen.http_auth": "required",
        "http.api_key_in_url": "false",
        "tls.cert": "",
        "tls.key": "",
        "tls.behind_proxy": "false",
        "limits.executions_per_sandbox_max": str(min(100, settings.limits.executions_per_sandbox_max)),
        "daemon.keep_sandboxes_on_stop": "false",
        "daemon.drain_grace_s": "1",
        "sandbox.guest_absence_s": "30",
        "sandbox.uid_first": str(sandbox.uid_first + sandbox.uid_count - taken),
        "sandbox.uid_count": str(taken),
        "log.level": "info",
        "log.format": "json",
        "engine.url": settings.engine.url,
    }


def _python_path() -> dict[str, str]:
    """Makes both packages importable in the child also where they are not installed (a checkout)."""
    places: list[str] = []
    for package in ("enclaved", "ms_enclave"):
        spec = importlib.util.find_spec(package)
        locations = (spec.submodule_search_locations or ()) if spec else ()
        places.extend(str(Path(location).resolve().parent) for location in locations)
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*dict.fromkeys(places), *([inherited] if inherited else [])])}


async def _until_ready(process: asyncio.subprocess.Process, log: Path) -> None:
    assert process.stdout is not None
    line = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
    if line.decode("utf-8", "replace").strip() != READY:
        said = _last_words(log)
        raise DaemonFailed(f"the doctor's daemon did not start within {START_S:g} s; it said:\n{said}")


def _last_words(log: Path) -> str:
    data = log.read_bytes()[-_LOG_BYTES_SHOWN:]
    lines: Sequence[str] = data.decode("utf-8", "replace").splitlines()[-12:]
    return "\n".join(lines) or "(nothing)"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the daemon by the end of its input, and kills it if that takes longer than a minute."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
