"""Which names of this server, and which origins, a request may have: what keeps a browser's pages out."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import urlsplit

_LOOPBACK_NAMES: Final = frozenset({"localhost"})


class Foreign(Exception):
    """A request that a web page of somebody else may have made. The text is for whoever sent it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Hosts:
    """The names under which one listener is known."""

    def __init__(self, names: Collection[str] | None = ()) -> None:
        """``names`` beside loopback ones and addresses; ``None`` allows any, for a unix socket."""
        self._names = None if names is None else frozenset(name.lower() for name in names)

    def check(self, hosts: Sequence[str], origins: Sequence[str]) -> None:
        """Refuses what web pages send here, under names of their own or from elsewhere. Raises `Foreign`.

        ``hosts`` and ``origins`` are all headers of these names. No browser sends a request without a Host; probes of
        load balancers do.
        """
        if hosts and not self._is_known(hosts):
            raise Foreign(400, "this server is not known under the Host of the request; see the setting http.hosts")
        if origins and [origin.rpartition("://")[2] for origin in origins] != list(hosts):
            raise Foreign(403, "requests of web pages of other origins are refused")

    def _is_known(self, hosts: Sequence[str]) -> bool:
        if self._names is None:
            return True
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        return _is_address(name) or name in _LOOPBACK_NAMES or name in self._names


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    # A page can have its own name resolve to this machine, but not an address.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
