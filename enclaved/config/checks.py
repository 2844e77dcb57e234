"""What a setting must be beside its type, and which settings exclude each other."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from enclaved.config.settings import Settings

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


def http_address(text: str) -> Address | Path:
    """Reads where the HTTP API listens: ``host:port``, or ``unix:PATH``. Raises `ValueError`."""
    return Path(text.removeprefix("unix:")) if text.startswith("unix:") else parse_address(text)


def contradictions(settings: Settings) -> Iterator[Problem]:
    """Finds every setting that cannot be as it is."""
    listen = settings.listen
    yield from _socket_problems("listen.unix", listen.unix)
    yield from _http_problems(settings)
    for key, text, why in (
        ("listen.tcp", listen.tcp, "anybody who reaches it could run code; this version has no tokens to prevent that"),
        ("listen.metrics", listen.metrics, "metrics have no access control of their own"),
    ):
        problem = _address_problem(text, why) if text else None
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
        why = "anybody who reaches it could run code; set http.api_keys to open it to others"
        problem = _address_problem(text, why, anywhere=bool(keys))
        if problem:
            yield Problem("listen.http", problem)
    for key in keys:
        if not key.isascii() or not key.isprintable() or not key.strip():
            yield Problem("http.api_keys", "has a key that no header can carry; use printable ASCII characters")
        elif key.startswith("sha256:") and not _SHA256.fullmatch(key):
            yield Problem("http.api_keys", "has a digest that is not sha256: and 64 hexadecimal digits")


def _address_problem(text: str, why_loopback: str, *, anywhere: bool = False) -> str | None:
    try:
        address = parse_address(text)
    except ValueError as error:
        return str(error)
    if anywhere or address.host == "localhost":
        return None
    try:
        if ipaddress.ip_address(address.host).is_loopback:
            return None
    except ValueError:
        pass
    return f"must be a loopback address such as 127.0.0.1:{address.port}, is {text!r}: {why_loopback}"
