"""Whoever is at the other end of a connection to a sandbox: until the hello has been checked it may be anybody."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from enclaved.agent import acl
from enclaved.agent.guest.frames import FrameDecoder, FrameError
from enclaved.errors import NoSpace

log = logging.getLogger(__name__)

_SOCKET_PATH_MAX = 107


class Peer(Protocol):
    """One connection, of whatever kind."""

    is_slow: bool
    """Whether more waits for it than it takes at once."""

    def write(self, data: bytes) -> None:
        """Queues frames. What is queued is bounded by who sends."""
        ...

    def abort(self) -> None:
        """Drops the connection."""
        ...


class Hearer(Protocol):
    """Who hears what a peer says."""

    sandbox_id: str

    def may_connect(self, uid: int) -> bool:
        """Whether a process of this user may be the guest."""
        ...

    def on_frame(self, peer: Peer, header: Mapping[str, Any], payload: bytes) -> None:
        """Takes in one frame. Raises FrameError for nonsense."""
        ...

    def on_caught_up(self, peer: Peer) -> None:
        """The peer has read nearly all that waited for it."""
        ...

    def on_gone(self, peer: Peer) -> None:
        """The connection is gone."""
        ...


def hear(hearer: Hearer, peer: Peer, decoder: FrameDecoder, data: bytes) -> None:
    """Passes on the frames that these bytes complete. Nonsense ends the connection."""
    try:
        for header, payload in decoder.feed(data):
            hearer.on_frame(peer, header, payload)
    except FrameError as error:
        log.error("guest dropped", extra={"sandbox_id": hearer.sandbox_id, "reason": str(error)[:500]})
        peer.abort()


class SocketPeer(asyncio.Protocol):
    """One connection to the listening socket."""

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = hearer
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self.is_slow = False
        """Whether more waits for it than a socket takes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = connection = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if not self._hearer.may_connect(uid):
            log.warning("connection refused", extra={"sandbox_id": self._hearer.sandbox_id, "peer_uid": uid})
            connection.abort()

    def data_received(self, data: bytes) -> None:
        hear(self._hearer, self, self._decoder, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hearer.on_gone(self)

    def pause_writing(self) -> None:
        self.is_slow = True

    def resume_writing(self) -> None:
        self.is_slow = False
        self._hearer.on_caught_up(self)

    def write(self, data: bytes) -> None:
        """Queues bytes. Jobs and input are bounded by the number of executions and their windows, the rest by `send`.

        The end of a reader is always told; there are no more of them than were let in.
        """
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()
        self._hearer.on_gone(self)


def bound_socket(path: Path, group_id: int, mapped_root: int | None = None) -> socket.socket:
    """Makes a socket for a guest, in a directory of its own. Raises `NoSpace` if the host does not let it.

    The guest reaches it by its group, or as ``mapped_root``, which is who it is on a host whose engine maps users.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise NoSpace(str(path), f"the socket path {path} is too long; choose a shorter state directory")
    directory = path.parent
    try:
        directory.mkdir(mode=0o710, parents=True, exist_ok=True)
        os.chown(directory, -1, group_id)
        directory.chmod(0o710)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            os.chown(path, -1, group_id)
            path.chmod(0o660)
            if mapped_root is not None:
                acl.let_enter(directory, mapped_root)
                acl.let_connect(path, mapped_root)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise NoSpace(str(path), f"cannot listen on {path}: {error.strerror}") from error
    return sock
