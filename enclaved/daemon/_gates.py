"""The ways into the daemon: which listener needs what of its callers, and with which certificate it speaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Final

from enclaved.config import Address, Settings, http_address, is_loopback, parse_address
from enclaved.core.access import Access, Door
from enclaved.core.policy import Policy
from enclaved.core.policy.users import role_of
from enclaved.core.tokens import Tokens, TokensUnusable
from enclaved.daemon._errors import StartError
from enclaved.daemon._sockets import listen_tcp
from enclaved.daemon._tls import Certificates
from enclaved.gateway import ADDRESS_SHARE
from enclaved.metrics import Metrics
from enclaved.model import EMBEDDED, LOCAL, Identity
from enclaved.services import Doors, Server, add_tls_port

_log = logging.getLogger(__name__)

_KNOWN_MAX: Final = 10_000


class Gates:
    """One for each daemon."""

    def __init__(self, settings: Settings, tokens: Tokens, metrics: Metrics, policy: Policy, *, embedded: bool) -> None:
        """Raises `StartError` if the tokens or the certificate that a listener needs cannot be used."""
        self._settings = settings
        self._tokens = tokens
        self._access = Access(tokens, metrics, _Scopes(policy))
        listen = settings.listen
        needs = {
            "tcp": listen.tcp and (listen.tcp_auth == "required" or not _is_local(listen.tcp)),
            "http": listen.http
            and (listen.http_auth == "required" or bool(settings.http.api_keys) or not _is_local(listen.http)),
            "metrics": listen.metrics and not _is_local(listen.metrics),
        }
        owner = EMBEDDED if embedded else LOCAL
        anyone = {
            "tcp": LOCAL,
            "http": owner if listen.http.startswith("unix:") else LOCAL,
            "metrics": EMBEDDED,
        }
        doors = {name: Door(self._access, name, None if needs[name] else anyone[name]) for name in ("tcp", "metrics")}
        self.doors = Doors(Door(self._access, "unix", owner), doors["tcp"])
        self.http = Door(
            self._access,
            "http",
            None if needs["http"] else anyone["http"],
            keys=settings.http.api_keys,
            key_role=settings.http.role,
        )
        self.metrics = doors["metrics"]
        self._needs_tokens = any(needs.values())
        if self._needs_tokens:
            self._check_tokens(needs["tcp"] or needs["metrics"] or not settings.http.api_keys)
        self._certificates = self._load(metrics)

    def listen_tcp(self, server: Server) -> str:
        """Binds the port of gRPC, if there is to be one, and returns its address. Raises `StartError`."""
        text = self._settings.listen.tcp
        if not text:
            return ""
        certificates = self._certificates
        if certificates is None:
            return str(listen_tcp(server.add_insecure_port, parse_address(text)))
        bind = partial(add_tls_port, server, now=lambda: certificates.pair)
        return str(listen_tcp(bind, parse_address(text)))

    @property
    def needs_keys(self) -> bool:
        """Whether a listener needs tokens or a certificate, which may change while it listens."""
        return self._needs_tokens or self._certificates is not None

    @property
    def http_tls(self) -> SSLContext | None:
        """With what the HTTP API speaks TLS; ``None``: it does not."""
        return None if self._certificates is None or self._settings.listen.http.startswith("unix:") else self._context

    @property
    def metrics_tls(self) -> SSLContext | None:
        """With what the endpoint for Prometheus speaks TLS; ``None``: it does not."""
        return None if self._certificates is None or _is_local(self._settings.listen.metrics) else self._context

    @property
    def address_share(self) -> int:
        """One address beyond loopback may have one in so many of the connections to HTTP and to metrics."""
        # Behind a proxy all connections may come from one address.
        return 1 if self._settings.tls.behind_proxy else ADDRESS_SHARE

    def reload(self) -> None:
        """Reads the certificate again."""
        if self._certificates is not None:
            self._certificates.reload()

    async def watch(self) -> None:
        """Follows tokens and the certificate as they change. Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tokens.watch())
            if self._certificates is not None:
                group.create_task(self._certificates.watch())

    @property
    def _context(self) -> SSLContext | None:
        return None if self._certificates is None else self._certificates.context

    def _check_tokens(self, needs_one: bool) -> None:
        try:
            self._tokens.open()
        except TokensUnusable as error:
            raise StartError(str(error)) from error
        if needs_one and not self._tokens.count:
            _log.warning("nobody can call over the network yet: make a token with 'enclaved token create NAME'")

    def _load(self, metrics: Metrics) -> Certificates | None:
        tls, listen = self._settings.tls, self._settings.listen
        over_tcp = listen.tcp or (listen.http and not listen.http.startswith("unix:"))
        if not tls.cert or not (over_tcp or (listen.metrics and not _is_local(listen.metrics))):
            return None
        return Certificates(Path(tls.cert), Path(tls.key), metrics)


class _Scopes:
    """Scopes by the policy in force, found once for everybody who calls often."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rules = policy.rules
        self._known: dict[Identity, frozenset[str]] = {}

    def __call__(self, caller: Identity) -> Collection[str]:
        if self._rules is not self._policy.rules:
            self._rules, self._known = self._policy.rules, {}
        found = self._known.get(caller)
        if found is None:
            found = frozenset(role_of(caller, self._rules).scopes)
            if len(self._known) < _KNOWN_MAX:
                self._known[caller] = found
        return found


def _is_local(text: str) -> bool:
    where = http_address(text)
    return not isinstance(where, Address) or is_loopback(where)
