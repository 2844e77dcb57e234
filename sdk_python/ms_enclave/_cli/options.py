"""What many commands have in common: options, JSON, and the way to a daemon that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ms_enclave._local import process_daemons
from ms_enclave._transports.grpc import GrpcTransport

_CallableT = TypeVar("_CallableT", bound=Callable[..., Any])


def address_option(command: _CallableT) -> _CallableT:
    """Adds ``--address``."""
    text = (
        "Daemon to use: unix:/path/to/socket, host:port, or https://host:port with a token in MS_ENCLAVE_TOKEN. "
        "Default: MS_ENCLAVE_ADDRESS, else this machine's, else one of our own where that makes sense."
    )
    return click.option("--address", metavar="ADDRESS", help=text)(command)


def json_option(command: _CallableT) -> _CallableT:
    """Adds ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value instead.")(command)


def print_json(value: object) -> None:
    """Prints one JSON value."""
    click.echo(json.dumps(value, indent=2))


async def running_daemon(address: str | None) -> GrpcTransport:
    """Finds a daemon and starts none. Raises `DaemonUnavailable`."""
    return await process_daemons().connect(address, may_start=False)
