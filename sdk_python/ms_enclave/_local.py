"""Finds a daemon: an argument, else ``MS_ENCLAVE_ADDRESS``, else the system's, else one of our own.

Addresses are ``unix:/path``, ``/path``, ``host:port``, and ``https://host:port`` for TLS.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import threading
from pathlib import Path
from typing import Final

from ms_enclave._embedded import EmbeddedDaemon
from ms_enclave._forks import at_fork
from ms_enclave._transports.calls import REQUEST_S
from ms_enclave._transports.credentials import HTTPS, Credentials, told_ca, told_token
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.errors import DaemonUnavailable, DeadlineExceeded, InvalidRequest, Unavailable

ADDRESS_VARIABLE: Final = "MS_ENCLAVE_ADDRESS"
SYSTEM_SOCKET: Final = Path("/run/enclaved/enclaved.sock")
PROBE_S: Final = 2.0
"""How long the system's daemon may take to show that it is there."""

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


class Daemons:
    """The daemons that this process talks to, with one transport for each. May be used from any loop and thread."""

    def __init__(self, system_socket: Path = SYSTEM_SOCKET) -> None:
        self._system_socket = system_socket
        self._embedded = EmbeddedDaemon()
        self._lock = threading.Lock()
        """Guards the dictionary; held for no longer than a look into it."""
        self._transports: dict[tuple[str, float, Credentials], GrpcTransport] = {}
        at_fork(after_in_child=self._after_fork)

    async def connect(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        request_timeout_s: float | None = None,
        may_start: bool = True,
    ) -> GrpcTransport:
        """Finds a daemon, or starts one if it may.

        ``token``: who calls; not given, ``MS_ENCLAVE_TOKEN`` counts for an address that was given. A daemon of our own
        needs none.
        ``request_timeout_s`` limits calls that neither run a program nor make a sandbox; 60 s if not given.
        Raises `InvalidRequest` for an address that is none, `DaemonStartFailed` if there is no daemon and none can
        be started, `DaemonUnavailable` if there is none and it may not start one. Whether a daemon answers at an
        address that was given shows in the first call.
        """
        timeout_s = request_timeout_s or REQUEST_S
        if address:
            return self._transport(parse_address(address, "address"), timeout_s, told_token(token))
        if told := os.environ.get(ADDRESS_VARIABLE):
            return self._transport(parse_address(told, ADDRESS_VARIABLE), timeout_s, told_token(token))
        if _is_socket(self._system_socket):
            system = self._transport(f"unix:{self._system_socket}", timeout_s, (token or "").strip())
            try:
                await system.health(timeout_s=PROBE_S)
            except (Unavailable, DeadlineExceeded):
                pass  # left behind by a daemon that is gone, or not for us
            else:
                return system
        if not may_start:
            raise DaemonUnavailable(
                f"no daemon runs on this machine: none answers at {self._system_socket} and {ADDRESS_VARIABLE} "
                "is not set; 'enclaved run' starts one"
            )
        return self._transport(await asyncio.to_thread(self._embedded.ensure), timeout_s)

    def _transport(self, address: str, timeout_s: float, token: str = "") -> GrpcTransport:
        credentials = Credentials(token, told_ca() if address.startswith(HTTPS) else None)
        with self._lock:
            key = (address, timeout_s, credentials)
            if key not in self._transports:

                async def revive() -> None:
                    await asyncio.to_thread(self._embedded.revive, address)

                self._transports[key] = GrpcTransport(
                    address, request_timeout_s=timeout_s, revive=revive, credentials=credentials
                )
            return self._transports[key]

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


@functools.cache
def process_daemons() -> Daemons:
    """Returns the daemons of this process. Sandboxes and managers share them, so that one embedded daemon is enough."""
    return Daemons()


def parse_address(text: str, source: str) -> str:
    """Turns an address into a gRPC target. Raises `InvalidRequest` naming ``source`` if it is none."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("/") else path
    else:
        path = text
    if path.startswith("/") and "\0" not in path:
        if len(os.fsencode(path)) > 107:
            raise InvalidRequest(f"{source}: the socket path {path!r} is longer than the 107 bytes that Linux allows")
        return f"unix:{path}"
    is_tls = text.startswith(HTTPS)
    plain = text.removeprefix(HTTPS).removesuffix("/") if is_tls else text
    found = None if text.startswith("unix:") else _HOST_PORT.fullmatch(plain)
    if found is None or not 0 < int(found[2]) < 65536:
        raise InvalidRequest(
            f"{source}: {text!r} is no address; write unix:/path/to/socket, host:port or https://host:port"
        )
    return f"{HTTPS}{plain}" if is_tls else plain


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:
        return False
