"""The folder in which scripts keep what took them long to make."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from _console import Progress, Refused


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Makes and returns ``${XDG_CACHE_HOME:-~/.cache}/ms-enclave``."""
    folder = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms-enclave"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot make the cache folder {folder} ({error.strerror}). Fix: set XDG_CACHE_HOME") from error
    return folder


@contextmanager
def locked(path: Path, script: str) -> Iterator[None]:
    """Lets one run of a script build at a time; a second one waits and says so."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Progress(f"waiting for another {script}"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_tree(path: Path) -> None:
    """Removes a tree, but never through something that is mounted in it, which would not be ours to delete."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed([point for point in mounts if point.startswith(f"{path}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)
    if path.exists():
        shutil.rmtree(path)
