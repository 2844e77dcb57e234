"""Opens the HTTP API on the address that the settings name."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

from enclaved.config import Address, Settings, http_address
from enclaved.daemon._errors import StartError
from enclaved.daemon._gates import Gates
from enclaved.daemon._sockets import listen_unix
from enclaved.gateway.app import make_app
from enclaved.gateway.guard import Entrance
from enclaved.gateway.routes import Core
from enclaved.gateway.server import serving
from enclaved.metrics import Metrics
from enclaved.services import Calls

BACKLOG = 512


@asynccontextmanager
async def http_endpoint(
    settings: Settings, core: Core, metrics: Metrics, calls: Calls, gates: Gates
) -> AsyncIterator[str]:
    """Serves until the block ends; gives the address with the port that it got. Raises `StartError`."""
    listen, http = settings.listen, settings.http
    where = http_address(listen.http)
    entrance = Entrance(
        gates.http,
        key_in_url=http.api_key_in_url,
        hosts=None if isinstance(where, Path) else (where.host, *http.hosts),
        requests_max=http.requests_max,
    )
    app = make_app(core, entrance=entrance, metrics=metrics, gate=calls, archive_bytes_max=http.archive_max_bytes)
    if isinstance(where, Path):
        bound = _Unix()
        listen_unix(bound, where, int(listen.unix_mode, 8), listen.unix_group)
        inode = where.stat().st_ino
        try:
            async with serving(app, bound.socket, listen.connections_max, metrics.http):
                yield f"unix:{where}"
        finally:
            if where.exists() and where.stat().st_ino == inode:
                where.unlink()
        return
    listener = _bind(where)
    host, port = listener.getsockname()[:2]
    async with serving(app, listener, listen.connections_max, metrics.http, gates.http_tls, gates.address_share):
        yield str(Address(host, port))


class _Unix:
    """Binds a plain socket where `listen_unix` says."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def add_insecure_port(self, address: str) -> int:
        """Binds ``unix:PATH``."""
        try:
            self.socket.bind(unquote(address.removeprefix("unix:")))
            self.socket.listen(BACKLOG)
        except OSError:
            self.socket.close()
            raise
        return 1


def _bind(address: Address) -> socket.socket:
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        hint = "is another program using the port? Choose another address with listen.http (--listen-http)"
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise StartError(f"cannot serve HTTP on {address}: {why}; {hint}") from error
    return listener
