"""What a setting must be beside its type, and which settings exclude each other."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from enclaved.config.settings import Settings
from enclaved.config.waive import waiver_problems

SOCKET_PATH_BYTES_MAX: Final = 107
"""Longest path of a unix socket on Linux."""

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_STATE_DIR_BYTES_MAX = 72  # leaves room for the sockets of sandboxes below it


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Problem(NamedTuple):
    """A setting and what is wrong with it."""

    key: str
    text: str


def parse_address(text: str) -> Address:
    """Reads ``host:port``; an IPv6 address stands in brackets. Raises `ValueError`."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"must look like 127.0.0.1:50061, is {text!r}")
    return Address(host, int(port))


def is_loopback(address: Address) -> bool:
    """Whether only this machine reaches an address."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def http_address(text: str) -> Address | Path:
    """Reads where the HTTP API listens: ``host:port``, or ``unix:PATH``. Raises `ValueError`."""
    return Path(text.removeprefix("unix:")) if text.startswith("unix:") else parse_address(text)


def contradictions(settings: Settings) -> Iterator[Problem]:
    """Finds every setting that cannot be as it is."""
    listen = settings.listen
    yield from _socket_problems("listen.unix", listen.unix)
    yield from _http_problems(settings)
    yield from _tls_problems(settings)
    for key, text in (("listen.tcp", listen.tcp), ("listen.metrics", listen.metrics)):
        problem = _address_problem(settings, text) if text else None
        if problem:
            yield Problem(key, problem)
    if not listen.unix and not listen.tcp:
        yield Problem("listen.unix", "is empty and so is listen.tcp; the daemon must listen somewhere")
    directory = settings.state.dir
    if not PurePosixPath(directory).is_absolute():
        yield Problem("state.dir", f"must be an absolute path, is {directory!r}")
    elif len(os.fsencode(directory)) > _STATE_DIR_BYTES_MAX:
        yield Problem(
            "state.dir", f"must have at most {_STATE_DIR_BYTES_MAX} bytes, so that sockets below it stay possible"
        )
    if not settings.engine.url.startswith(("unix:///", "tcp://")):
        yield Problem("engine.url", f"must start with unix:/// or tcp://, is {settings.engine.url!r}")
    for problem_text in waiver_problems(settings.waive.protections):
        yield Problem("waive.protections", problem_text)
    try:
        settings.policy_limits()
    except ValueError as error:
        name = str(error).split(" ", 1)[0]
        yield Problem(f"limits.{name}", str(error).removeprefix(f"{name} "))


def _socket_problems(key: str, path: str) -> Iterator[Problem]:
    if not path:
        return
    if not PurePosixPath(path).is_absolute():
        yield Problem(key, f"must be an absolute path, is {path!r}")
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        yield Problem(key, f"has more than the {SOCKET_PATH_BYTES_MAX} bytes that Linux allows for a socket's path")


def _http_problems(settings: Settings) -> Iterator[Problem]:
    text, keys = settings.listen.http, settings.http.api_keys
    if text.startswith("unix:"):
        yield from _socket_problems("listen.http", text.removeprefix("unix:"))
        if text.removeprefix("unix:") in ("", settings.listen.unix):
            yield Problem("listen.http", "must be a path of its own")
    elif text:
        problem = _address_problem(settings, text)
        if problem:
            yield Problem("listen.http", problem)
    for key in keys:
        if not key.isascii() or not key.isprintable() or not key.strip():
            yield Problem("http.api_keys", "has a key that no header can carry; use printable ASCII characters")
        elif key.startswith("sha256:") and not _SHA256.fullmatch(key):
            yield Problem("http.api_keys", "has a digest that is not sha256: and 64 hexadecimal digits")


def _tls_problems(settings: Settings) -> Iterator[Problem]:
    tls = settings.tls
    for key, path, other in (("tls.cert", tls.cert, tls.key), ("tls.key", tls.key, tls.cert)):
        if path and not PurePosixPath(path).is_absolute():
            yield Problem(key, f"must be an absolute path, is {path!r}")
        if other and not path:
            yield Problem(key, "is empty; a certificate and its key go together")
    if tls.behind_proxy and tls.cert:
        yield Problem("tls.behind_proxy", "says that a proxy ends TLS, and tls.cert that the daemon does; choose one")


def _address_problem(settings: Settings, text: str) -> str | None:
    try:
        address = parse_address(text)
    except ValueError as error:
        return str(error)
    if is_loopback(address) or settings.tls.cert or settings.tls.behind_proxy:
        return None
    return (
        f"must be a loopback address such as 127.0.0.1:{address.port}, is {text!r}: beyond that, callers send tokens, "
        "which need TLS; set tls.cert and tls.key, or tls.behind_proxy if a proxy before it ends TLS"
    )
