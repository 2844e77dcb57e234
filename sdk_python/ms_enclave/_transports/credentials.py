"""What a client shows of itself, and whom it trusts: tokens, and the certificates of daemons.

A token is sent to a socket of this machine, to a loopback address or over TLS, and nowhere else.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ms_enclave.errors import InvalidRequest

TOKEN_VARIABLE: Final = "MS_ENCLAVE_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE: Final = "MS_ENCLAVE_CA"
TOKEN_PREFIX: Final = "mse_"  # noqa: S105 - what every token starts with
HTTPS: Final = "https://"

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_CA_BYTES_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token, and the certificates of those who may vouch for a daemon."""

    token: str = field(default="", repr=False)
    ca: bytes | None = field(default=None, repr=False)
    """PEM; ``None``: those that everybody trusts."""

    def check(self, address: str) -> None:
        """Raises `InvalidRequest` if the token would travel to this gRPC target in the open, or in no header."""
        if not self.token:
            return
        if not _VISIBLE.fullmatch(self.token):
            raise InvalidRequest("token: may have visible ASCII characters only")
        if not address.startswith(("unix:", HTTPS)) and not is_loopback(address.rpartition(":")[0]):
            raise InvalidRequest(
                f"token: is not sent to {address}, where others could read it on the way; write {HTTPS}{address}, and "
                "have the daemon speak TLS (tls.cert)"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each gRPC call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def told_token(token: str | None) -> str:
    """Returns a token: the argument, else that of the environment; empty for none."""
    return os.environ.get(TOKEN_VARIABLE, "").strip() if token is None else token.strip()


def told_ca() -> bytes | None:
    """Returns the certificates that ``MS_ENCLAVE_CA`` names; ``None`` if it names none. Raises `InvalidRequest`."""
    path = os.environ.get(CA_VARIABLE)
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            found = file.read(_CA_BYTES_MAX)
        ssl.create_default_context(cadata=found.decode("ascii"))
    except OSError as error:
        raise InvalidRequest(f"{CA_VARIABLE}: {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidRequest(f"{CA_VARIABLE}: {path} has no certificates in PEM") from error
    return found


def ssl_context(ca: bytes | None) -> ssl.SSLContext:
    """Makes what an HTTP client checks a server with: TLS 1.2 or newer, a trusted certificate, its name."""
    context = ssl.create_default_context(cadata=None if ca is None else ca.decode("ascii"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def exactly(certfile: str) -> ssl.SSLContext:
    """Makes what an HTTP client checks a server with whose certificate it has in a file, whatever name that is for."""
    context = ssl.create_default_context(cafile=certfile)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def check_http(base_url: str, key: str) -> None:
    """Raises `InvalidRequest` if a token would travel to a URL in the open."""
    url = urlsplit(base_url)
    if key.startswith(TOKEN_PREFIX) and url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise InvalidRequest(
            f"api_key: a token is not sent to {base_url}, where others could read it on the way; use {HTTPS}…"
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as far as its name says."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
