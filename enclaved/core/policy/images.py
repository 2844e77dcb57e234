"""Which images a role may use: names with patterns, and names pinned to a digest. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
"""Last part of a host that is no address and that some resolvers take for one all the same, such as 127.0x1."""
_GATEWAYS = tuple(ipaddress.ip_network(each) for each in ("64:ff9b::/96", "2002::/16", "::/96", "::ffff:0:0/96"))
"""Addresses that stand for one of IPv4, whichever that is."""
_HUB = "docker.io/"
_LOCAL_DOMAINS = ("arpa", "internal", "lan", "local", "localdomain", "localdomain4", "localdomain6", "localhost")
"""Last parts of names that only a network, or a host, of somebody's own can know."""


@dataclass(frozen=True, slots=True)
class ImageName:
    """A name of an image in the one spelling that all spellings share: ``docker.io/library/python`` is
    ``python:latest``. Where only ``docker.io/`` tells it from a name at another registry, that stays."""

    name: str
    """With a tag, without its digest."""
    digest: str = ""

    @property
    def registry(self) -> str:
        """The host that it names, with its port; empty: it names none."""
        return _registry(self.name)

    @property
    def full(self) -> str:
        """The name as the engine completes it, with ``docker.io/`` and ``library/`` where it says no other."""
        if self.registry:
            return self.name
        return f"{_HUB}{self.name}" if "/" in self.name else f"{_HUB}library/{self.name}"


@dataclass(frozen=True, slots=True)
class ImageGrant:
    """An image that may be used. ``digest``: the one that it must turn out to have; empty: any."""

    digest: str


@lru_cache(maxsize=1024)
def image_name(text: str) -> ImageName:
    """Reads a name, or a pattern for names."""
    name, _, digest = text.partition("@")
    name = _tagged(name)
    rest = _at_hub(name)
    short = rest.removeprefix("library/")
    if rest != short and "/" not in short:
        return ImageName(short, digest)
    return ImageName(f"{_HUB}{rest}" if rest != name and _registry(rest) else rest, digest)


def _tagged(name: str) -> str:
    has_tag = ":" in name.rpartition("/")[2]
    return name if has_tag or name.endswith("*") else f"{name}:latest"


def _at_hub(name: str) -> str:
    """A name without the prefix that every engine adds where there is no registry."""
    prefix = next((each for each in (_HUB, f"index.{_HUB}") if name.startswith(each)), "")
    return name.removeprefix(prefix)


def _registry(name: str) -> str:
    first, slash, _ = name.partition("/")
    # Names of repositories have small letters only, so newer engines take what has others for a host.
    is_host = first == "localhost" or first != first.lower() or bool(set(".:") & set(first))
    return first if slash and is_host else ""


def granted_image(image: str, entries: Iterable[str]) -> ImageGrant | None:
    """Finds what a role's list says of an image; ``None``: it is not on it.

    A pin comes before patterns. A name on a private address counts only where an entry says its registry.
    """
    wanted = image_name(image)
    is_private = _is_private(wanted.registry)
    found: ImageGrant | None = None
    for text in entries:
        entry = image_name(text)
        if not _matches(text, entry.name, wanted) or (is_private and not _names_registry(entry.name)):
            continue
        if not entry.digest:
            found = found or ImageGrant(wanted.digest)
        elif wanted.digest in ("", entry.digest):
            return ImageGrant(entry.digest)
    return found if found is None or not _is_pinned(wanted, entries) else None


def entry_problem(text: str) -> str | None:
    """Says what is wrong with an entry of the list, if something is."""
    name, at, digest = text.partition("@")
    if not name or not text.isascii() or not text.isprintable() or " " in text:
        return "is no name of an image: no spaces, control characters or letters beyond ASCII"
    if at and not _DIGEST.fullmatch(digest):
        return "must end with @sha256: and 64 hexadecimal digits, if it pins a digest"
    return None


def is_private_registry(image: str) -> bool:
    """Whether a name has its image fetched from this host or from a private address."""
    return _is_private(image_name(image).registry)


def _is_pinned(wanted: ImageName, entries: Iterable[str]) -> bool:
    """Whether an entry pins exactly this name, so that a wider pattern cannot undo the pin."""
    pins = (image_name(text) for text in entries if "@" in text)
    return any(pin.name == wanted.name for pin in pins)


def _matches(entry: str, pattern: str, wanted: ImageName) -> bool:
    """Whether an entry has a name; one that says ``docker.io/`` or ``library/`` has none of another registry."""
    said = entry.partition("@")[0]
    rest = _at_hub(said)
    if "*" in said and (rest != said or rest.startswith("library/")):
        first = "" if "/" in rest or rest.startswith("**") else "library/"
        return _pattern(_tagged(f"{_HUB}{first}{rest}")).fullmatch(wanted.full) is not None
    return _pattern(pattern).fullmatch(wanted.name) is not None


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", text)
    return re.compile("".join({"*": "[^/]*", "**": ".*"}.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _names_registry(pattern: str) -> bool:
    first, slash, _ = pattern.partition("/")
    return bool(slash) and first.strip("*") != ""


def _is_private(registry: str) -> bool:
    if not registry:
        return False
    host = registry[1:].partition("]")[0] if registry.startswith("[") else registry.partition(":")[0]
    host = host.lower().rstrip(".")
    last = host.rpartition(".")[2]
    if last in _LOCAL_DOMAINS:
        return True
    if not set(".:") & set(host):  # the outside has no such names: it is in /etc/hosts, or completed by a search domain
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _NUMERIC.fullmatch(last) is not None
    return not address.is_global or any(address in network for network in _GATEWAYS)
