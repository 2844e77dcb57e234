"""What a setting must be beside its type, and which settings exclude each other."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from enclaved.config.settings import Listen, Settings

SOCKET_PATH_BYTES_MAX: Final = 107
"""Longest path of a unix socket on Linux."""

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


def contradictions(settings: Settings) -> Iterator[Problem]:
    """Finds every setting that cannot be as it is."""
    listen = settings.listen
    yield from _socket_problems(listen)
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


def _socket_problems(listen: Listen) -> Iterator[Problem]:
    if not listen.unix:
        return
    if not PurePosixPath(listen.unix).is_absolute():
        yield Problem("listen.unix", f"must be an absolute path, is {listen.unix!r}")
    if len(os.fsencode(listen.unix)) > SOCKET_PATH_BYTES_MAX:
        yield Problem(
            "listen.unix", f"has more than the {SOCKET_PATH_BYTES_MAX} bytes that Linux allows for a socket's path"
        )


def _address_problem(text: str, why_loopback: str) -> str | None:
    try:
        address = parse_address(text)
    except ValueError as error:
        return str(error)
    if address.host == "localhost":
        return None
    try:
        if ipaddress.ip_address(address.host).is_loopback:
            return None
    except ValueError:
        pass
    return f"must be a loopback address such as 127.0.0.1:{address.port}, is {text!r}: {why_loopback}"
