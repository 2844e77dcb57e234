"""Which containers are ours: a key in the state directory, and labels that carry an HMAC under it.

Images and other programs can put any label on a container. Only the HMAC proves that this state directory's daemon
made it; what we cannot prove we leave alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from enclaved.runtime.base import LABEL_HMAC, LABEL_ID, LABEL_OWNER, LABEL_UID

KEY_NAME = "key"
LOCK_NAME = "lock"
EMBEDDED_NAME = re.compile(r"(\d+)-(\d+)(-[0-9a-f]+)?")
"""How programs name the directories of their daemons: process id and start time, which no later process has."""
DOCTOR_PREFIX: Final = "mse-doctor-"
"""How the directories of doctors begin; their process id is next."""
_DOCTOR_NAME: Final = re.compile(rf"{DOCTOR_PREFIX}(\d+)-[a-z0-9_]{{8}}")


class Ownership:
    """Signs the labels of containers, and recognises them."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.owner = hashlib.sha256(b"owner:" + key).hexdigest()[:16]

    @classmethod
    def of(cls, state_dir: Path) -> Ownership:
        """Reads the key of a state directory; makes one if there is none."""
        path = state_dir / KEY_NAME
        with contextlib.suppress(FileNotFoundError):
            return cls(path.read_bytes())
        for draft in state_dir.glob(f".{KEY_NAME}.*"):  # of a daemon that was killed: whoever is here has the lock
            draft.unlink(missing_ok=True)
        key = secrets.token_bytes(32)
        temporary = state_dir / f".{KEY_NAME}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(key)
                file.flush()
                os.fsync(fd)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return cls(key)

    def labels(self, sandbox_id: str, uid: int) -> dict[str, str]:
        """Makes the labels of a container."""
        labels = {LABEL_ID: sandbox_id, LABEL_OWNER: self.owner, LABEL_UID: str(uid)}
        return {**labels, LABEL_HMAC: self._sign(labels)}

    def proves(self, labels: Mapping[str, str]) -> bool:
        """Whether a container with these labels was made under this key."""
        claimed = labels.get(LABEL_HMAC, "").encode("utf-8", "surrogatepass")
        return hmac.compare_digest(claimed, self._sign(labels).encode())

    def _sign(self, labels: Mapping[str, str]) -> str:
        text = "\n".join(labels.get(name, "") for name in (LABEL_ID, LABEL_OWNER, LABEL_UID))
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def abandoned(base: Path, own: Path) -> Iterator[tuple[Path, Ownership]]:
    """Finds state directories, with a key, of embedded daemons that are gone with their programs, below a base.

    Only what is named as programs name the directories of their daemons: another daemon's directory may lie beside
    them, and its operator starts it again. Holds each one's lock while it is looked at, so that two daemons do not
    clean the same directory. A program that runs may start its daemon again there, and have its sandboxes back.
    """
    for lock in sorted(base.glob(f"*/state/{LOCK_NAME}")):
        state_dir = lock.parent
        if EMBEDDED_NAME.fullmatch(state_dir.parent.name) is None:
            continue
        if state_dir.resolve() == own.resolve() or owner_of_embedded(state_dir.parent) is not None:
            continue
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield state_dir, Ownership((state_dir / KEY_NAME).read_bytes())
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # alive, or being made or removed, or not ours


def owner_of_embedded(directory: Path) -> int | None:
    """The process whose embedded daemon uses a directory, by its name; ``None`` if that process is gone."""
    name = EMBEDDED_NAME.fullmatch(directory.name)
    if name is None:
        return None
    pid, started = int(name[1]), int(name[2])
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return pid if int(fields[19]) == started else None


def remove_state(state_dir: Path) -> None:
    """Removes the directory of an embedded daemon that is gone."""
    shutil.rmtree(state_dir.parent, ignore_errors=True)


def is_of_gone_doctor(directory: Path) -> bool:
    """Whether a directory has the name of a doctor's and no process has that doctor's number any more."""
    name = _DOCTOR_NAME.fullmatch(directory.name)
    return name is not None and not Path("/proc", name[1]).exists()
