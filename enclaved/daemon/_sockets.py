"""Where the daemon listens: the unix socket with its mode and group, and TCP."""

from __future__ import annotations

import grp
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from enclaved.config import Address
from enclaved.daemon._errors import StartError

_log = logging.getLogger(__name__)
_PROBE_S = 1.0


class Binds(Protocol):
    """What binds addresses: a gRPC server."""

    def add_insecure_port(self, address: str) -> int:
        """Binds an address. Raises `RuntimeError` if it cannot."""
        ...


def listen_unix(server: Binds, path: Path, mode: int, group: str) -> None:
    """Binds a unix socket that only ``mode`` and ``group`` open to others. Call it with the state lock held.

    A socket that a dead daemon left is replaced; one that somebody answers on, or another kind of file, is not.
    Raises `StartError`.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        umask = os.umask(0o177)  # nobody else gets in before the mode is set
        try:
            server.add_insecure_port(f"unix:{quote(str(path))}")
        finally:
            os.umask(umask)
        _give_to(path, group)
        path.chmod(mode)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "the socket cannot be made there"
        hint = "choose another path with listen.unix (--listen-unix)"
        raise StartError(f"cannot listen on {path}: {why}; {hint}") from error


def listen_tcp(bind: Callable[[str], int], address: Address) -> Address:
    """Binds a TCP address and returns it with the port that it got, as ``bind`` says it. Raises `StartError`."""
    try:
        return address._replace(port=bind(str(address)))
    except RuntimeError as error:
        hint = "is another program using the port? Choose another one with listen.tcp (--listen-tcp)"
        raise StartError(f"cannot listen on {address}: {hint}") from error


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"cannot listen on {path}: a file that is no socket is there; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise StartError(f"cannot listen on {path}: another program does so already; stop it, or choose another path")


def _give_to(path: Path, group: str) -> None:
    if not group:
        return
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        _log.warning("the group for the socket does not exist", extra={"group": group, "socket": str(path)})
    except PermissionError:
        _log.warning("the socket cannot be given to the group", extra={"group": group, "socket": str(path)})
