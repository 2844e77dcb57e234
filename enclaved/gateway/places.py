"""Places for requests: how many run at once, in all, of one client, and of those that may take long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from enclaved.gateway.refusals import Refused
from enclaved.model import Identity, IdentityKind

BRIEF_SHARE: Final = 8
"""One in so many places is kept for requests that are answered soon."""
CLIENT_SHARE: Final = 4
"""One in so many is out of reach of a single token."""

_LASTING: Final = frozenset({"/sandbox/create", "/sandbox/tool/execute", "/pool/initialize", "/pool/execute"})


class Places:
    """The places of one listener. Clients without a token are not told apart, and share what all may hold."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lasting_most = most - most // BRIEF_SHARE
        self._client_most = most - most // CLIENT_SHARE
        self._active = self._lasting = 0
        self._clients: dict[Identity, int] = {}

    @contextmanager
    def held(self, identity: Identity, method: str, path: str) -> Iterator[None]:
        """Holds a place for as long as the block runs. Raises `Refused` (429) where there is none."""
        lasts = method == "POST" and (path in _LASTING or path.endswith("/archive"))
        is_known = identity.kind is IdentityKind.TOKEN
        if self._active >= self._most:
            raise _refusal(f"this server handles {self._active} requests at once, its limit (http.requests_max)")
        if lasts and self._lasting >= self._lasting_most:
            raise _refusal(f"{self._lasting} requests wait for programs and sandboxes, as many as there may be")
        if is_known and self._clients.get(identity, 0) >= self._client_most:
            raise _refusal(f"{self._client_most} requests of this token run at once, its share (http.requests_max)")
        self._count(1, identity if is_known else None, lasts)
        try:
            yield
        finally:
            self._count(-1, identity if is_known else None, lasts)

    def _count(self, change: int, client: Identity | None, lasts: bool) -> None:
        self._active += change
        self._lasting += change * lasts
        if client is not None:
            self._clients[client] = self._clients.get(client, 0) + change
            if not self._clients[client]:
                del self._clients[client]


def _refusal(text: str) -> Refused:
    return Refused(429, f"{text}; try again", {"Retry-After": "1"})
