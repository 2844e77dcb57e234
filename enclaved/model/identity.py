"""Who calls."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from enclaved.model.sandboxes import DEFAULT_TENANT

DEFAULT_ROLE: Final = "default"
"""The role of whoever reaches a listener that needs no key."""
EMBEDDED_ROLE: Final = "embedded"
"""The role of the program that started a daemon for itself."""
MONITOR_ROLE: Final = "monitor"
"""The role of programs that watch a daemon."""


class IdentityKind(enum.StrEnum):
    """How somebody showed who they are."""

    LOCAL = "local"
    """By reaching a unix socket or a loopback address that needs no key."""
    EMBEDDED = "embedded"
    """By having started the daemon."""
    TOKEN = "token"  # noqa: S105 - the name of a kind
    API_KEY = "api_key"
    """By a key of the configuration."""


class Scope(enum.StrEnum):
    """What sort of thing a call does. A role has scopes; every method of the contract needs one."""

    READ = "read"
    """To look at what there is: sandboxes, executions and their output, pools, the daemon."""
    RUN = "run"
    """To run programs and to move files, in sandboxes and pools that are there."""
    CREATE = "create"
    """To make, change and end sandboxes and pools, and to have images pulled."""
    ADMIN = "admin"
    """What concerns everybody who uses the daemon: its metrics, where they need a key."""


SCOPES: Final = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who calls."""

    name: str
    role: str = DEFAULT_ROLE
    tenant: str = DEFAULT_TENANT
    kind: IdentityKind = IdentityKind.LOCAL


LOCAL: Final = Identity("local")
EMBEDDED: Final = Identity("embedded", EMBEDDED_ROLE, kind=IdentityKind.EMBEDDED)
