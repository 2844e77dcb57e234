"""Who calls over gRPC: which door a call came through, and what the caller showed."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

import grpc
from grpc import aio

from enclaved import log
from enclaved.core.access import Caller, Door, bearers
from enclaved.core.identity import act_as, current
from enclaved.core.tokens import Tokens
from enclaved.model import IdentityKind

Server: TypeAlias = aio.Server

_shown: contextvars.ContextVar[Iterable[tuple[str, str | bytes]]] = contextvars.ContextVar("enclaved_shown")
_entered: contextvars.ContextVar[Door] = contextvars.ContextVar("enclaved_entered")


def show(details: grpc.HandlerCallDetails) -> None:
    """Keeps the metadata of a call for its handler, which runs in the same task: gRPC would copy it once more."""
    _shown.set(details.invocation_metadata or ())


def demand(method: str) -> None:
    """For a message that does more than its method says: checks that another method is open to the caller as well.

    Raises `PolicyDenied`.
    """
    _entered.get().check(current(), method)


class Doors:
    """The doors of one server: that of its unix socket and that of its TCP port."""

    def __init__(self, unix: Door, tcp: Door) -> None:
        self._unix, self._tcp = unix, tcp

    @property
    def tokens(self) -> Tokens:
        """The tokens that open them."""
        return self._tcp.tokens

    def enter(self, method: str | None, context: Any) -> Caller:
        """Finds out who calls, does the rest of the task as that one, and checks that the method is open to it.

        ``None`` is a method that nobody serves. Raises `Unauthenticated`, `PolicyDenied`, and `Unavailable` if tokens
        cannot be read.
        """
        # gRPC tells nothing of who is behind a unix socket; that it is one, it does tell.
        peer = context.peer()
        door = self._unix if peer.startswith("unix:") else self._tcp
        caller = door.identify(_secrets(_shown.get()), peer)
        if caller.identity.kind is IdentityKind.TOKEN:
            log.bind(caller=caller.identity.name)
        act_as(caller.identity)
        _entered.set(door)
        if method is not None:
            door.check(caller.identity, method)
        return caller


def _secrets(metadata: Iterable[tuple[str, str | bytes]]) -> list[str]:
    found: list[str] = []
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str):
            found += bearers((value,))
        elif name == "x-api-key" and isinstance(value, str):
            found.append(value)
    return found


class Certificate(Protocol):
    """A key and a certificate with its chain, in PEM."""

    @property
    def key(self) -> bytes: ...

    @property
    def cert(self) -> bytes: ...


def add_tls_port(server: Server, address: str, now: Callable[[], Certificate]) -> int:
    """Binds an address for TLS (1.2 or newer) and returns the port. Raises `RuntimeError` if it cannot.

    ``now`` returns the certificate for a handshake; gRPC calls it from threads of its own.
    """
    last = now()

    def newer() -> Any:  # None: still the same
        nonlocal last
        found = now()
        if found is last:
            return None
        last = found
        return _configuration(found)

    return server.add_secure_port(address, grpc.dynamic_ssl_server_credentials(_configuration(last), newer))


def _configuration(found: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.cert)])
