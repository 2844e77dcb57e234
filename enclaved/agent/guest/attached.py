"""The connection to the daemon over standard input and output, to which the daemon is attached through the engine."""

from __future__ import annotations

import os
import time

from .frames import FrameDecoder
from .limits import SILENCE_LOOK_S, SILENCE_LOOKS, SILENCE_LOOKS_STILL
from .link import RECEIVE_BYTES, Link
from .loop import READABLE, WRITABLE
from .resync import BROKEN, Opener, answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

    from .loop import Loop


class AttachedLink(Link):
    """Waits for a daemon to open the stream, and takes one that says nothing for too long for gone.

    Neither its coming nor its leaving can be seen: it pings every 2 s, and what is written while nobody is attached is
    dropped on the way. While the sandbox is frozen no time passes here.
    """

    def __init__(self, loop: Loop, absence_limit_s: float) -> None:
        Link.__init__(self, loop, "", absence_limit_s)
        self.reading, self.writing = take_streams()
        self.opener = Opener()
        self.silent_looks = 0

    def connect(self) -> None:
        """Begins to listen; there is nothing that could fail or be tried again."""
        self.loop.watch(self.reading, READABLE, self.on_ready)
        self.loop.each(SILENCE_LOOK_S, self.look)

    def look(self) -> None:
        """Looks whether a daemon is still there."""
        self.silent_looks += 1
        most = SILENCE_LOOKS if self.loop.still_since is None else SILENCE_LOOKS_STILL  # it is about to freeze us
        if self.daemon is None:
            self.end_if_absent()
        elif self.silent_looks >= most:
            self.disconnect()

    def begin(self, nonce: bytes) -> None:
        """A daemon has opened the stream; another one, if there was one, is gone."""
        if self.daemon is not None:
            self.lose()
        self.daemon, self.connected_at = nonce, time.monotonic()
        self.decoder = FrameDecoder()
        self.outgoing = bytearray(answer(nonce))
        self.on_connected()

    def disconnect(self) -> None:
        """Drops a daemon that is gone or spoke nonsense. Should it be there after all, it hears of that."""
        if self.daemon is not None:
            self.outgoing += BROKEN
            self.lose()

    def lose(self) -> None:
        """There is no daemon any more."""
        self.daemon = None
        self.absent_since = time.monotonic()
        self.on_lost()

    def receive(self) -> bool:
        """Does what the next bytes say; returns whether there were any."""
        try:
            data = os.read(self.reading, RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # the engine has closed the stream, and no daemon can ever come
            os._exit(0)
        for frame in self.opener.feed(data):
            self.silent_looks = 0
            if isinstance(frame, bytes):
                if self.daemon is not None:
                    self.take(frame)
            else:
                self.begin(frame.nonce)
        if self.opener.nonce is None:
            self.disconnect()
        return True

    def on_ready(self, events: int) -> None:
        """Sends or receives: one descriptor is only read, the other one only written."""
        if events & WRITABLE:
            self.flush()
        else:
            self.receive()

    def flush(self) -> None:
        """Sends what is queued, as far as the stream takes it. The last words to a daemon are sent without it, too."""
        if self.outgoing:
            try:
                sent = os.write(self.writing, self.outgoing)
            except BlockingIOError:
                sent = 0
            except OSError:  # nobody reads any more
                sent = len(self.outgoing)
            del self.outgoing[:sent]
        if self.outgoing:
            self.loop.watch(self.writing, WRITABLE, self.on_ready)
        else:
            self.loop.unwatch(self.writing)


def take_streams() -> Tuple[int, int]:
    """Takes standard input and output away for the frames, so that nothing else can come between them.

    The copies are closed in every program that is started. In their place there is nothing to read or write.
    """
    reading, writing = os.dup(0), os.dup(1)  # not inheritable
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for fd in (reading, writing):
        os.set_blocking(fd, False)
    return reading, writing
