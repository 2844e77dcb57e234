"""The connection to the daemon."""

from __future__ import annotations

import os
import socket
import sys
import time

from .frames import FrameDecoder, FrameError, encode_frame
from .limits import UNREACHABLE
from .loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

    from .loop import Loop


RECEIVE_BYTES = 96 * 1024  # a larger buffer would be mapped and given back by the system with every call

# What comes of a field that is missing, of another type, or out of range.
NONSENSE = (FrameError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Link:
    """Connects to the daemon, again and again; passes on its frames and queues ours.

    ``on_connected``, ``on_frame`` and ``on_lost`` are set by whoever puts the guest together. What ``on_frame`` cannot
    make sense of it answers with one of `NONSENSE`; that ends the connection.
    """

    on_connected: Callable[[], None]
    on_frame: Callable[[Dict[str, Any], bytes], None]
    on_lost: Callable[[], None]

    def __init__(self, loop: Loop, socket_path: str, absence_limit_s: float, patience_s: float = 0.0) -> None:
        self.loop = loop
        self.socket_path = socket_path
        self.absence_limit_s = absence_limit_s  # 0: none
        self.patience_s = patience_s  # how long the first connection may take; 0: as long as it takes
        self.absent_since = time.monotonic()
        self.connected_at = 0.0
        self.has_met = False  # whether a daemon has ever said something
        self.daemon: Optional[Any] = None  # the connection; here a socket
        self.decoder = FrameDecoder()
        self.outgoing = bytearray()

    def connect(self) -> None:
        """Connects to the daemon; tries again until it is there or has been absent for too long."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(1.0)
            sock.connect(self.socket_path)
        except OSError as error:
            sock.close()
            absence_s = time.monotonic() - self.absent_since
            if self.patience_s and not self.connected_at and absence_s > self.patience_s:
                os.write(2, ("guest: cannot reach the daemon's socket: %s\n" % error).encode())
                os._exit(UNREACHABLE)
            self.end_if_absent()
            self.loop.after(min(1.0, 0.05 + absence_s / 10), self.connect)
            return
        sock.setblocking(False)
        self.daemon, self.connected_at = sock, time.monotonic()
        self.decoder = FrameDecoder()
        self.outgoing = bytearray()
        self.loop.watch(sock.fileno(), READABLE, self.on_ready)
        self.on_connected()

    def end_if_absent(self) -> None:
        """Ends the guest if there has been no daemon for too long."""
        if self.absence_limit_s and time.monotonic() - self.absent_since > self.absence_limit_s:
            os._exit(0)

    def present_since(self, moment: float) -> Optional[float]:
        """Since when a daemon has been there that can know what was so at a moment; None while there is none."""
        return None if self.daemon is None else max(moment, self.connected_at)

    def disconnect(self) -> None:
        """Drops a connection that is gone or spoke nonsense. Executions run on."""
        if self.daemon is None:
            return
        self.loop.unwatch(self.daemon.fileno())
        self.daemon.close()
        self.daemon = None
        self.absent_since = time.monotonic()
        self.on_lost()
        self.loop.after(0.02, self.connect)

    def on_ready(self, events: int) -> None:
        """Sends and receives as far as the socket is ready for it."""
        if events & WRITABLE:
            self.flush()
        if self.daemon is not None and events & ~WRITABLE:
            self.receive()

    def receive(self) -> bool:
        """Does what the next bytes from the daemon say; returns whether there were any."""
        if self.daemon is None:
            return False
        try:
            data = self.daemon.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return False
        self.take(data)
        return True

    def take(self, data: bytes) -> None:
        """Does what the frames say that these bytes complete. Nonsense ends the connection."""
        try:
            for header, payload in self.decoder.feed(data):
                self.has_met = True
                self.on_frame(header, payload)
        except FrameError as error:
            sys.stderr.write("guest: the daemon sent a frame that cannot be understood: %s\n" % error)
            self.disconnect()
        except NONSENSE:  # a field that is no such thing, or a mistake of ours: the log must show which
            sys.excepthook(*sys.exc_info())
            self.disconnect()

    def send(self, header: Dict[str, Any], payload: bytes = b"") -> None:
        """Queues a frame for the daemon. What is queued is bounded by the credit of the readers."""
        if self.daemon is not None:
            self.outgoing += encode_frame(header, payload)

    def flush(self) -> None:
        """Sends what is queued, as far as the socket takes it."""
        if self.daemon is None or not self.outgoing:
            return
        try:
            sent = self.daemon.send(self.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            while self.receive():  # what a daemon has said before its end, such as what to run
                pass
            self.disconnect()
            return
        del self.outgoing[:sent]
        events = READABLE | WRITABLE if self.outgoing else READABLE
        self.loop.watch(self.daemon.fileno(), events, self.on_ready)
