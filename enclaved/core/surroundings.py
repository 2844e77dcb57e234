"""What this machine knows of networks: its name servers, and its own addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

RESOLVERS_MAX: Final = 3
"""So many name servers a resolver asks."""
_RESOLV_CONF: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second one has the name servers behind a resolver of this machine's own."""
_ROUTES: Final = Path("/proc/net/fib_trie")
_LEAF = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


def resolvers(configured: Iterable[str], places: Iterable[Path] = _RESOLV_CONF) -> tuple[str, ...]:
    """The name servers for sandboxes: those of the configuration, else those that this machine asks over a network.

    Only such with an address of IPv4, since sandboxes have no other. Blocks. May be none.
    """
    found = _usable(configured)
    for place in places:
        if found:
            break
        try:
            lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        words = (line.split() for line in lines)
        found = _usable(word[1] for word in words if len(word) > 1 and word[0] == "nameserver")
    return found


def host_addresses(place: Path = _ROUTES) -> tuple[str, ...]:
    """The addresses of IPv4 of this machine's interfaces, without those of the loopback. Blocks."""
    try:
        found = _LEAF.findall(place.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return ()
    return tuple(sorted({text for text in found if not ipaddress.ip_address(text).is_loopback}))


def _usable(texts: Iterable[str]) -> tuple[str, ...]:
    found = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address.version == 4 and not address.is_loopback and not address.is_unspecified:
            found.append(str(address))
    return tuple(dict.fromkeys(found))[:RESOLVERS_MAX]
