"""Who may call what: the one table of scopes, and the doors through which every call comes.

A door belongs to a listener. It finds out who calls, from what the caller shows or from the listener alone, and whether
that one's role has the scope of what is called. What the table does not list is denied.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from enclaved.core.tokens import PREFIX, Token, Tokens
from enclaved.core.tokens.live import INVALID
from enclaved.errors import PolicyDenied, Unauthenticated
from enclaved.metrics import Metrics
from enclaved.model import DEFAULT_ROLE, Identity, IdentityKind, Scope

_log = logging.getLogger(__name__)

LOG_EVERY_S: Final = 1.0
"""A door logs refused callers at most so often, and says how many there were."""
SHOWN_MAX: Final = 2
"""Secrets that a caller may show at once; further ones are not looked at."""

_SCOPES: Final[Mapping[Scope, Mapping[str, str]]] = {
    Scope.READ: {
        "SandboxService": "GetSandbox ListSandboxes WatchSandboxes",
        "ExecutionService": "Attach GetExecution ListExecutions WaitExecution",
        "ContextService": "ListContexts",
        "ToolService": "ListTools",
        "FileService": "ReadFile StatFile ListDirectory WatchDirectory SearchFiles ReadArchive",
        "PoolService": "GetPool ListPools ListLeases",
        "SystemService": "GetInfo",
        "Health": "Check Watch",
        "ServerReflection": "ServerReflectionInfo",
    },
    Scope.RUN: {
        "ExecutionService": "Run Execute CancelExecution SignalExecution",
        "ContextService": "OpenContext CloseContext ResetContext",
        "FileService": "WriteFile MakeDirectory MoveFile CopyFile RemoveFile WriteArchive",
        "PoolService": "RunInPool",
    },
    Scope.CREATE: {
        "SandboxService": (
            "CreateSandbox UpdateSandbox StartSandbox StopSandbox PauseSandbox ResumeSandbox DeleteSandbox"
        ),
        "PoolService": "InitializePool UpdatePool DeletePool Claim",
        "ImageService": "PullImage",
    },
    Scope.ADMIN: {"Metrics": "Scrape"},
}
METHODS: Final[Mapping[str, Scope]] = MappingProxyType(
    {
        f"{service}.{method}": scope
        for scope, services in _SCOPES.items()
        for service, methods in services.items()
        for method in methods.split()
    }
)
"""What each method of the contract needs; the HTTP routes and the metrics are methods as well."""


class Caller(NamedTuple):
    """Who calls, and the token that showed it, if one did."""

    identity: Identity
    token: Token | None = None


class Access:
    """What all doors of a daemon share."""

    def __init__(
        self,
        tokens: Tokens,
        metrics: Metrics,
        scopes_of: Callable[[Identity], Collection[str]],
    ) -> None:
        """``scopes_of`` returns the scopes of somebody's role. It raises `PolicyDenied` if there is no such role."""
        self.tokens = tokens
        self.metrics = metrics
        self.scopes_of = scopes_of

    def check(self, caller: Identity, method: str) -> None:
        """Raises `PolicyDenied` unless the caller's role has the scope of a method."""
        needed, scopes = METHODS.get(method), self.scopes_of(caller)
        if needed is None:
            raise PolicyDenied("scope", "method", f"{method} is open to nobody")
        if needed not in scopes:
            text = f"{method} needs the scope {needed.value!r}, which the role of {caller.name!r} lacks"
            raise PolicyDenied("scope", "role", text, ", ".join(sorted(scopes)) or "none")


class Door:
    """The way in at one listener."""

    def __init__(
        self,
        access: Access,
        listener: str,
        anonymous: Identity | None,
        *,
        keys: Iterable[str] = (),
        key_role: str = DEFAULT_ROLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``listener`` names it in metrics and logs. ``anonymous`` is who calls without showing a secret; without it
        nobody may. ``keys`` are secrets beside the tokens, or their digests (``sha256:`` and 64 hexadecimal digits).
        """
        self._access = access
        self.listener = listener
        self._anonymous = None if anonymous is None else Caller(anonymous)
        self._keys = tuple(_digest_of(key) for key in keys)
        self._key = Caller(Identity("api-key", key_role, kind=IdentityKind.API_KEY))
        self._clock = clock
        self._logged = float("-inf")
        self._unlogged = 0

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches it may call."""
        return self._anonymous is not None

    def identify(self, shown: Sequence[str], peer: str = "") -> Caller:
        """Finds out who shows these secrets. Raises `Unauthenticated`, the same for whatever is wrong with them.

        A token that is shown must be valid, also where none is needed; other secrets count only where one is needed.
        """
        if self._anonymous is not None and not any(secret.startswith(PREFIX) for secret in shown):
            return self._anonymous
        for secret in shown[:SHOWN_MAX]:
            # All digests have one length and are compared, whichever fits.
            digest = hashlib.sha256(secret.encode("utf-8", "replace")).digest()
            if sum(hmac.compare_digest(digest, key) for key in self._keys):
                return self._key
            token = self._access.tokens.find(secret)
            if token is not None:
                return Caller(Identity(token.name, token.role, token.tenant, IdentityKind.TOKEN), token)
        self._refused(peer)
        raise Unauthenticated(INVALID)

    def check(self, caller: Identity, method: str) -> None:
        """Raises `PolicyDenied` unless the caller's role has the scope of a method."""
        self._access.check(caller, method)

    @property
    def tokens(self) -> Tokens:
        """The tokens that it knows."""
        return self._access.tokens

    def _refused(self, peer: str) -> None:
        self._access.metrics.access.auth_failed(self.listener)
        self._unlogged += 1
        now = self._clock()
        if now - self._logged >= LOG_EVERY_S:
            _log.warning(
                "callers without a valid token",
                extra={"listener": self.listener, "calls": self._unlogged, "last": peer},
            )
            self._logged, self._unlogged = now, 0


HASHED: Final = "sha256:"
"""What a key starts with that is given by its digest, in hexadecimal."""


def _digest_of(key: str) -> bytes:
    if key.startswith(HASHED):
        return bytes.fromhex(key.removeprefix(HASHED))
    return hashlib.sha256(key.encode()).digest()


def bearers(values: Iterable[str]) -> list[str]:
    """Returns the secrets in values of the header ``Authorization``: ``Bearer SECRET``."""
    pairs = [value.partition(" ") for value in values]
    return [secret.strip() for scheme, _, secret in pairs if scheme.lower() == "bearer"]
