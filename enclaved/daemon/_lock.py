"""The lock on the state directory: one daemon at a time, and it is taken before anything is bound or removed."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

from enclaved.core.ownership import LOCK_NAME
from enclaved.daemon._errors import StartError, StateLocked

_PATIENCE_S = 0.5
"""An embedded daemon that starts holds each lock below its base for a moment, to see whether its owner is gone."""
_RETRY_S = 0.02


@asynccontextmanager
async def locked_state(directory: Path) -> AsyncIterator[Path]:
    """Makes the state directory if need be and holds its lock for as long as the block runs.

    Raises `StateLocked` while another daemon holds it, `StartError` if the directory cannot be used. The lock goes
    with the process that holds it, however that ends; the file stays.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "choose one that this user may write with state.dir (--state-dir)"
        raise StartError(f"cannot use the state directory {directory}: {error.strerror}; {hint}") from error
    with os.fdopen(fd, "r+") as file:
        await _take(file, directory)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            hint = "make room there, or choose another one with state.dir (--state-dir)"
            raise StartError(f"cannot write to the state directory {directory}: {error.strerror}; {hint}") from error
        yield directory


async def _take(file: TextIO, directory: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(_RETRY_S)
                continue
            holder = file.read(32).strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StateLocked(f"another enclaved ({who}) uses the state directory {directory}; stop it first") from None
        return
