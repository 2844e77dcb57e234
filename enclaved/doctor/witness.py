"""Witnesses on the host: listeners that nobody in a sandbox may reach, and files that nobody there may read."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_HEARD_S: Final = 2.0
_CONTACTS_MAX: Final = 1000


def new_nonce(kind: str = "d") -> str:
    """Makes a name that nobody guesses: a letter and 12 digits, so that it can be the name of a process."""
    return kind + secrets.token_hex(6)


@dataclass
class Witness:
    """What a program may try to reach, and who was reached."""

    directory: Path
    addresses: Sequence[str] = ("127.0.0.1",)
    """Addresses of the host at which to listen."""
    secret: str = field(default_factory=lambda: f"secret-{secrets.token_hex(16)}")
    """What stands in the host's file."""
    ports: list[tuple[str, int]] = field(default_factory=list)
    _contacts: list[tuple[str, str]] = field(default_factory=list)
    """Whom somebody reached, and what they said then."""
    abstract: str = field(default_factory=lambda: f"enclaved-doctor-{secrets.token_hex(8)}")

    @property
    def file(self) -> Path:
        """A file of the host that every user may read."""
        return self.directory / "of-the-host"

    @property
    def socket_path(self) -> Path:
        """A socket of the host that every user may connect to."""
        return self.directory / "host.sock"

    def met(self, who: str, text: str) -> None:
        """Writes down that somebody was reached."""
        if len(self._contacts) < _CONTACTS_MAX:
            self._contacts.append((who, text))

    def mark(self) -> int:
        """Returns how many contacts there were, for `contacts`."""
        return len(self._contacts)

    def contacts(self, nonce: str, since: int) -> tuple[str, ...]:
        """Returns whom the program with this nonce reached.

        Who said nothing may be any program that went on then: that counts for all that began at a `mark` before.
        """
        named = [who for who, text in self._contacts if nonce in text]
        return tuple(named + [who for who, text in self._contacts[since:] if not text])


@asynccontextmanager
async def witness(directory: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> AsyncIterator[Witness]:
    """Opens the listeners, on loopback unless ``addresses`` says otherwise, and writes the file."""
    made = Witness(directory, addresses)
    made.file.write_text(made.secret)
    made.file.chmod(0o644)
    async with AsyncExitStack() as stack:

        async def listen(name: str, listener: socket.socket) -> None:
            async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                text = b""
                try:
                    async with asyncio.timeout(_HEARD_S):
                        text = await reader.read(64)
                except (TimeoutError, OSError):
                    pass
                made.met(name, text.decode("latin-1"))
                writer.close()

            if listener.family == socket.AF_UNIX:
                server = await asyncio.start_unix_server(heard, sock=listener)
            else:
                server = await asyncio.start_server(heard, sock=listener)
            await stack.enter_async_context(server)

        for address in addresses:
            listener = socket.create_server((address, 0))
            made.ports.append((address, listener.getsockname()[1]))
            await listen(f"a port of the host at {address}", listener)
        for name, place in (
            ("a socket of the host", str(made.socket_path)),
            ("an abstract socket of the host", f"\0{made.abstract}"),
        ):
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(place)
            bound.listen(16)
            bound.setblocking(False)
            await listen(name, bound)
        made.socket_path.chmod(0o666)
        yield made
